package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/layer"
	"berth/image/object"
	"berth/image/tree"
)

func openStore(t testing.TB, dir string) *object.Store {
	t.Helper()
	s, err := object.Open(t.Context(), object.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func begin(t testing.TB, s *object.Store) *object.Batch {
	t.Helper()
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.End)
	return b
}

// sizes are of bodies in the tree, in a block, over its end, held and spilled.
var sizes = []int{0, 1, 500, 513, 4000, 100_000, 900_000, 1 << 20, 1<<20 + 1, 9 << 20, 700, 2 << 20, 40}

func archive(t testing.TB, seed byte) []byte {
	t.Helper()
	random := rand.NewChaCha8([32]byte{seed})
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i, size := range sizes {
		body := make([]byte, size)
		random.Read(body)
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i%3, i), Typeflag: tar.TypeReg, Size: int64(size), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		w.Write(body)
	}
	w.Close()
	return buf.Bytes()
}

// bodyOf is the file of archive's size i.
func bodyOf(t testing.TB, s *object.Store, root *tree.Node, i int) []byte {
	t.Helper()
	n := tree.Find(root, fmt.Sprintf("d%d/f%d", i%3, i))
	if n == nil {
		t.Fatalf("no file %d", i)
	}
	if n.Object == (tree.Digest{}) {
		return n.Body
	}
	f, err := s.Open(n.Object)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	body, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func opener(s *object.Store) func(tree.Digest) (io.ReadCloser, error) {
	return func(d tree.Digest) (io.ReadCloser, error) { return s.Open(d) }
}

func TestRoundTrip(t *testing.T) {
	tar := archive(t, 1)
	random := rand.NewChaCha8([32]byte{1})
	s := openStore(t, t.TempDir())
	for _, c := range []layer.Config{{}, {InlineLimit: layer.InlineLimit}, {InlineLimit: 1 << 20, Workers: 1}, {Workers: 7}} {
		var recipe bytes.Buffer
		c.Objects, c.Recipe = begin(t, s), &recipe
		root, err := layer.Read(t.Context(), c, iotest.HalfReader(bytes.NewReader(tar)))
		if err != nil {
			t.Fatal(err)
		}
		random.Seed([32]byte{1})
		for i, size := range sizes {
			want := make([]byte, size)
			random.Read(want)
			if !bytes.Equal(bodyOf(t, s, root, i), want) {
				t.Errorf("body %d differs", i)
			}
			if n := tree.Find(root, fmt.Sprintf("d%d/f%d", i%3, i)); (n.Object != tree.Digest{}) != (size > c.InlineLimit) || n.Size != int64(size) {
				t.Errorf("body of %d is an object: %x", size, n.Object)
			}
		}
		kept := bytes.Clone(recipe.Bytes())
		var back bytes.Buffer
		if err := layer.Write(t.Context(), &recipe, opener(s), &back); err != nil || !bytes.Equal(back.Bytes(), tar) {
			t.Errorf("recipe makes %d bytes, want %d: %v", back.Len(), len(tar), err)
		}
		for b, err := range layer.Bodies(bytes.NewReader(kept)) {
			if err != nil || sha256.Sum256(tar[b.Offset:b.Offset+b.Size]) != b.Digest {
				t.Errorf("body %+v is not there: %v", b, err)
			}
		}
		for _, at := range []int{0, 10, len(kept) / 2, len(kept) - 1} {
			err := layer.Write(t.Context(), bytes.NewReader(kept[:at]), opener(s), io.Discard)
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("recipe cut at %d: %v", at, err)
			}
		}
		lost := errs.New(errs.Unavailable, "no body")
		err = layer.Write(t.Context(), bytes.NewReader(kept), func(tree.Digest) (io.ReadCloser, error) { return nil, lost }, io.Discard)
		if !errors.Is(err, lost) {
			t.Errorf("body that is not here: %v", err)
		}
	}
}

// Layers are read side by side into one store.
func TestParallel(t *testing.T) {
	s := openStore(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range byte(6) {
		tar := archive(t, i/2)
		wg.Go(func() {
			b, err := s.Begin(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer b.End()
			var recipe, back bytes.Buffer
			if _, err := layer.Read(t.Context(), layer.Config{Objects: b, Recipe: &recipe}, bytes.NewReader(tar)); err != nil {
				t.Error(err)
			}
			if err := layer.Write(t.Context(), &recipe, opener(s), &back); err != nil || !bytes.Equal(back.Bytes(), tar) {
				t.Errorf("%d bytes, %v", back.Len(), err)
			}
		})
	}
	wg.Wait()
}

// A stream that fails keeps its own error; one that is cut is Invalid.
func TestBrokenStreams(t *testing.T) {
	tar := archive(t, 1)
	s := openStore(t, t.TempDir())
	b := begin(t, s)
	lost := errs.New(errs.Unavailable, "line cut")
	for _, at := range []int{0, 100, 700, 200_000, 1 << 20, 8 << 20, len(tar) - 10} {
		for _, recipe := range []io.Writer{nil, io.Discard} {
			cut := io.MultiReader(bytes.NewReader(tar[:at]), iotest.ErrReader(lost))
			_, err := layer.Read(t.Context(), layer.Config{Objects: b, Recipe: recipe}, cut)
			if !errors.Is(err, lost) || errors.Is(err, errs.Invalid) {
				t.Errorf("failed at %d: %v", at, err)
			}
			cut = io.MultiReader(bytes.NewReader(tar[:at]), iotest.ErrReader(io.ErrUnexpectedEOF))
			if _, err := layer.Read(t.Context(), layer.Config{Objects: b, Recipe: recipe}, cut); !errors.Is(err, errs.Invalid) {
				t.Errorf("compression cut at %d: %v", at, err)
			}
			if at%512 == 0 {
				continue
			}
			if _, err := layer.Read(t.Context(), layer.Config{Objects: b, Recipe: recipe}, bytes.NewReader(tar[:at])); !errors.Is(err, errs.Invalid) {
				t.Errorf("cut at %d: %v", at, err)
			}
		}
	}
	full := errors.New("no room for the recipe")
	if _, err := layer.Read(t.Context(), layer.Config{Objects: b, Recipe: failing{full}}, bytes.NewReader(tar)); !errors.Is(err, full) {
		t.Errorf("recipe fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	half := io.MultiReader(bytes.NewReader(tar[:5<<20]), readerFunc(func([]byte) (int, error) { cancel(); return 0, nil }))
	if _, err := layer.Read(ctx, layer.Config{Objects: b}, half); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := layer.Read(t.Context(), layer.Config{Objects: b}, readerFunc(func([]byte) (int, error) { return 0, nil })); err == nil {
		t.Error("a stream that gives nothing")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// The stream is read beyond the archive, to its end.
func TestReadsToTheEnd(t *testing.T) {
	stream := io.MultiReader(bytes.NewReader(archive(t, 1)), strings.NewReader(strings.Repeat("\x00", 5<<20)))
	if _, err := layer.Read(t.Context(), layer.Config{}, stream); err != nil {
		t.Fatal(err)
	}
	if n, _ := io.Copy(io.Discard, stream); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
}

func TestNoRoom(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("needs root, to mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := openStore(t, dir)
	b := begin(t, s)
	for _, recipe := range []io.Writer{nil, io.Discard} {
		_, err := layer.Read(t.Context(), layer.Config{Objects: b, Recipe: recipe}, bytes.NewReader(archive(t, 1)))
		if !errors.Is(err, errs.Exhausted) {
			t.Errorf("error %v", err)
		}
	}
	err := s.Walk(t.Context(), func(d tree.Digest, _ int64) error { return s.Verify(t.Context(), d) })
	if err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir(), "tmp-*")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestHeal(t *testing.T) {
	tar := archive(t, 1)
	s := openStore(t, t.TempDir())
	root, err := layer.Read(t.Context(), layer.Config{Objects: begin(t, s)}, bytes.NewReader(tar))
	if err != nil {
		t.Fatal(err)
	}
	bad := map[tree.Digest]bool{}
	for i, d := range tree.Objects(root) {
		name := filepath.Join(s.Dir(), object.Name(d))
		switch i % 3 {
		case 0:
			bad[d] = true
			os.Remove(name)
		case 1:
			bad[d] = true
			os.WriteFile(name, []byte("damaged"), 0o600)
		}
	}
	n, err := layer.Heal(t.Context(), bytes.NewReader(tar), func(d tree.Digest) bool { return s.Verify(t.Context(), d) != nil }, s)
	if err != nil || n != len(bad) {
		t.Errorf("%d healed, want %d: %v", n, len(bad), err)
	}
	for _, d := range tree.Objects(root) {
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
	if n, err := layer.Heal(t.Context(), bytes.NewReader(tar), func(tree.Digest) bool { return false }, s); n != 0 || err != nil {
		t.Errorf("%d healed that nobody wants: %v", n, err)
	}
	if _, err := layer.Heal(t.Context(), bytes.NewReader(tar[:5<<20]), func(tree.Digest) bool { return true }, s); !errors.Is(err, errs.Invalid) {
		t.Errorf("healed from a tar that is cut: %v", err)
	}
}
