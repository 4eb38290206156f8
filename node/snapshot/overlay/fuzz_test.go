package overlay_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"berth/base/errs"
)

// FuzzIngest: whatever the bytes, an ingest either fails as Invalid (or for
// want of space) and leaves nothing, or gives a layer whose diff can be
// ingested; and nothing outside is touched.
func FuzzIngest(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root: makes devices and owners")
	}
	for _, files := range []map[string]string{
		{}, {"a": "x"}, {"a/b": "x", "a/.wh.c": "", "a/.wh..wh..opq": ""}, {"../a": "x"}, {"/a": "x"},
	} {
		seed, err := io.ReadAll(pack(f, files))
		must(f, err)
		f.Add(seed)
	}
	dir := f.TempDir()
	outside := filepath.Join(filepath.Dir(dir), "outside")
	must(f, os.WriteFile(outside, []byte("safe"), 0o600))
	s := open(f, dir)
	f.Cleanup(func() { _ = s.Close() })
	f.Fuzz(func(t *testing.T, layer []byte) {
		in, err := s.Ingest(t.Context(), bytes.NewReader(layer))
		if err != nil {
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Exhausted) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		_, err = in.Commit(t.Context(), "layer", "", nil)
		must(t, err)
		var out bytes.Buffer
		must(t, s.Diff(t.Context(), "layer", &out))
		again, err := s.Ingest(t.Context(), &out)
		if err != nil {
			t.Fatalf("the diff cannot be ingested: %v", err)
		}
		must(t, again.Abort(t.Context()))
		must(t, s.Remove(t.Context(), "layer"))
		if body, err := os.ReadFile(outside); err != nil || string(body) != "safe" {
			t.Fatalf("the layer reached outside: %q, %v", body, err)
		}
	})
}
