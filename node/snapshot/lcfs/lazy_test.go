package lcfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/snapshot"
)

// brought is a folder that stands for whoever brings missing bodies.
type brought struct{ dir string }

func (b brought) open(context.Context) (int, error) {
	return unix.Open(b.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func (b brought) put(t *testing.T, d tree.Digest, body []byte) {
	t.Helper()
	dir := filepath.Join(b.dir, hex.EncodeToString(d[:1]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, hex.EncodeToString(d[1:])), body, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A layer that is known from another store works before its bodies are here,
// and is like any other when they are.
func TestMissing(t *testing.T) {
	bodies := map[string][]byte{"big": bytes.Repeat([]byte("berth "), 100_000), "other": bytes.Repeat([]byte("quay "), 1000), "small": []byte("small")}
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, name := range []string{"big", "other", "small"} {
		if err := w.WriteHeader(&tar.Header{Name: "dir/" + name, Mode: 0o640, Size: int64(len(bodies[name])), ModTime: time.Unix(1_700_000_000, 0)}); err != nil {
			t.Fatal(err)
		}
		w.Write(bodies[name])
	}
	w.Close()
	first := open(t, t.TempDir())
	defer first.Close()
	in, err := first.Ingest(t.Context(), bytes.NewReader(packed.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(t.Context(), "layer", "", nil); err != nil {
		t.Fatal(err)
	}
	delta, err := first.Delta(t.Context(), "layer")
	if err != nil {
		t.Fatal(err)
	}
	recipe, size, err := first.Recipe(t.Context(), "layer")
	if err != nil || size == 0 {
		t.Fatal(size, err)
	}
	defer recipe.Close()

	dir := t.TempDir()
	s := open(t, dir)
	if _, err := s.IngestKnown(t.Context(), delta, recipe); !errors.Is(err, errs.Unsupported) {
		t.Fatalf("with nobody to bring bodies: %v", err)
	}
	from := brought{t.TempDir()}
	if !s.Missing(from.open) {
		t.Skip("this kernel cannot mount what is missing")
	}
	in, err = s.IngestKnown(t.Context(), delta, recipe)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(t.Context(), "layer", "", map[string]string{snapshot.Missing: "blob"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), "c", "layer", nil); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir())
	if err := s.Mount(t.Context(), "c", root); err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(context.WithoutCancel(t.Context()), root)
	if st, err := os.Stat(root + "/dir/big"); err != nil || st.Size() != 600_000 {
		t.Errorf("before it is here: %v, %v", st, err)
	}
	if got, err := os.ReadFile(root + "/dir/small"); err != nil || string(got) != "small" {
		t.Errorf("what is in the metadata: %q, %v", got, err)
	}
	if got, err := os.ReadFile(root + "/dir/big"); err == nil {
		t.Errorf("%d bytes that are not here", len(got))
	}
	from.put(t, sha256.Sum256(bodies["big"]), bodies["big"])
	if got, err := os.ReadFile(root + "/dir/big"); err != nil || !bytes.Equal(got, bodies["big"]) {
		t.Errorf("when somebody brings it: %d bytes, %v", len(got), err)
	}
	if _, err := s.Mounts(t.Context(), "c"); !errors.Is(err, errs.Unavailable) {
		t.Errorf("for another process: %v", err)
	}

	// The store opens again, knows what it lacks, and takes only what is right.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	if err := s.Mount(t.Context(), "c", t.TempDir()); !errors.Is(err, errs.Unavailable) {
		t.Errorf("with nobody to bring bodies: %v", err)
	}
	s.Missing(from.open)
	if err := s.Whole(t.Context(), "layer"); !errors.Is(err, errs.Conflict) {
		t.Errorf("whole without its bodies: %v", err)
	}
	for name, body := range bodies {
		d := tree.Digest(sha256.Sum256(body))
		if name == "small" {
			continue
		}
		if s.Has(d) {
			t.Errorf("%s is here", name)
		}
		wrong := bytes.Clone(body)
		wrong[len(wrong)-1] ^= 1
		for _, bad := range [][]byte{wrong, body[1:], nil} {
			if err := s.Fill(t.Context(), d, int64(len(body)), bytes.NewReader(bad)); !errors.Is(err, errs.Invalid) || s.Has(d) {
				t.Errorf("%s of other bytes: %v", name, err)
			}
		}
		if err := s.Fill(t.Context(), d, int64(len(body)), io.MultiReader(bytes.NewReader(body), bytes.NewReader(body))); err != nil || !s.Has(d) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Whole(t.Context(), "layer"); err != nil {
		t.Fatal(err)
	}
	if info, err := s.Stat(t.Context(), "layer"); err != nil || info.Labels[snapshot.Missing] != "" {
		t.Errorf("%+v, %v", info, err)
	}
	var again bytes.Buffer
	if err := s.Tar(t.Context(), "layer", &again); err != nil || !bytes.Equal(again.Bytes(), packed.Bytes()) {
		t.Errorf("its tar has %d bytes of %d, %v", again.Len(), packed.Len(), err)
	}
	if _, err := s.Mounts(t.Context(), "c"); err != nil {
		t.Errorf("for another process, whole: %v", err)
	}
	found, err := s.Bodies(t.Context(), "layer", []string{"dir/small", "dir/other", "none", "dir"})
	if err != nil || len(found) != 1 || found[0] != sha256.Sum256(bodies["other"]) {
		t.Errorf("bodies of paths: %x, %v", found, err)
	}
}
