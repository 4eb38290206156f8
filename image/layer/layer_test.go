package layer_test

import (
	"archive/tar"
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"

	"berth/image/layer"
	"berth/image/object"
	"berth/image/tree"
)

func openStore(t testing.TB) *object.Store {
	t.Helper()
	s, err := object.Open(t.Context(), object.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "d/big", Typeflag: tar.TypeReg, Size: 3 << 20},
		{Name: "d/small", Typeflag: tar.TypeReg, Size: 10},
		{Name: "d/middle", Typeflag: tar.TypeReg, Size: 10000},
	} {
		w.WriteHeader(&h)
		io.CopyN(w, strings.NewReader(strings.Repeat(h.Name, 1<<20)), h.Size)
	}
	w.Close()
	whole := bytes.Clone(buf.Bytes())
	s := openStore(t)
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.End()
	var recipe bytes.Buffer
	root, err := layer.Read(t.Context(), layer.Config{Objects: b, InlineLimit: 64, Recipe: &recipe}, &buf)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tree.Objects(root)); n != 2 {
		t.Error(n)
	}
	var back bytes.Buffer
	if err := layer.Write(t.Context(), &recipe, func(d tree.Digest) (io.ReadCloser, error) { return s.Open(d) }, &back); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back.Bytes(), whole) {
		t.Errorf("%d bytes, want %d", back.Len(), len(whole))
	}
}
