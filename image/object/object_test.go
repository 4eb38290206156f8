package object_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
)

func open(t testing.TB, dir string) *object.Store {
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

func put(t testing.TB, b *object.Batch, body []byte) tree.Digest {
	t.Helper()
	d, err := b.Put(body)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func bodyOf(t testing.TB, s *object.Store, d tree.Digest) []byte {
	t.Helper()
	f, err := s.Open(d)
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

func want(t testing.TB, kind errs.Kind, err error, what string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: error %v, want %s", what, err, kind)
	}
}

// left lists temporary files.
func left(t testing.TB, s *object.Store) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.Dir(), "tmp-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestBodies(t *testing.T) {
	hole := slices.Concat(make([]byte, 2<<20), []byte("middle"), make([]byte, 1<<20))
	for name, body := range map[string][]byte{
		"empty":       {},
		"byte":        {7},
		"zeros":       make([]byte, 300<<10),
		"block":       random(1, object.Block),
		"hole":        hole,
		"held":        random(2, object.Block+1),
		"too big":     random(3, 9<<20),
		"big hole":    slices.Concat(hole, hole, hole),
		"ends in one": slices.Concat(random(4, 9<<20), make([]byte, 100_000)),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			b := begin(t, s)
			d := tree.Digest(sha256.Sum256(body))
			if b.Has(d) || s.Has(d) || b.Pin(d) {
				t.Error("it is here before it is stored")
			}
			for _, size := range []int64{int64(len(body)), -1} {
				got, n, err := b.PutFrom(iotest.HalfReader(bytes.NewReader(body)), size)
				if err != nil || got != d || n != int64(len(body)) {
					t.Errorf("PutFrom: %x, %d, %v", got, n, err)
				}
			}
			if got := put(t, b, body); got != d {
				t.Errorf("Put: %x", got)
			}
			if !b.Has(d) || !s.Has(d) || !b.Pin(d) || !bytes.Equal(bodyOf(t, s, d), body) {
				t.Error("it is not here")
			}
			st, err := os.Stat(filepath.Join(s.Dir(), object.Name(d)))
			if err != nil || st.Mode() != 0o600 || st.Size() != int64(len(body)) {
				t.Errorf("object is %v, %v", st, err)
			}
			folder, err := os.Stat(filepath.Dir(filepath.Join(s.Dir(), object.Name(d))))
			if err != nil || folder.Mode().Perm() != 0o700 {
				t.Errorf("folder is %v, %v", folder, err)
			}
			if strings.Contains(name, "hole") {
				if used := blocks(t, filepath.Join(s.Dir(), object.Name(d))); used > st.Size()/2 {
					t.Errorf("%d bytes on disk of %d, want holes kept", used, st.Size())
				}
			}
			if names := left(t, s); len(names) > 0 {
				t.Errorf("left %q", names)
			}
			if !open2(t, dir, s).Has(d) {
				t.Error("the next process does not find it")
			}
		})
	}
}

// open2 opens the store anew.
func open2(t testing.TB, dir string, s *object.Store) *object.Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, dir)
}

func blocks(t testing.TB, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestKnownBodiesCostNoWrite(t *testing.T) {
	s := open(t, t.TempDir())
	b := begin(t, s)
	small, big := random(1, 1000), random(2, 3<<20)
	for range 2 {
		for _, body := range [][]byte{small, big} {
			d, _, err := b.PutFrom(bytes.NewReader(body), int64(len(body)))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(s.Dir(), object.Name(d))
			// A write would put the old bytes back.
			if err := os.WriteFile(file, []byte("mark"), 0o600); err != nil {
				t.Fatal(err)
			}
			put(t, b, body)
			if got, _ := os.ReadFile(file); string(got) != "mark" {
				t.Error("a known body was written again")
			}
		}
	}
}

func TestPutFromFails(t *testing.T) {
	s := open(t, t.TempDir())
	b := begin(t, s)
	lost := errs.New(errs.Unavailable, "line cut")
	for _, n := range []int{10, 3 << 20, 10 << 20} {
		_, _, err := b.PutFrom(io.MultiReader(bytes.NewReader(random(1, n)), iotest.ErrReader(lost)), int64(n)+1)
		want(t, errs.Unavailable, err, "reader failed")
		_, _, err = b.PutFrom(bytes.NewReader(random(1, n)), int64(n)+1)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes for %d: %v", n, n+1, err)
		}
	}
	w, err := b.Create()
	if err != nil {
		t.Fatal(err)
	}
	w.Write(random(5, 9<<20))
	w.Abort()
	w.Abort()
	if _, err := w.Commit(); err == nil {
		t.Error("commit after abort")
	}
	b.End()
	b.End()
	_, err = b.Put([]byte("late"))
	want(t, errs.Conflict, err, "put after end")
	if _, err := b.Create(); !errors.Is(err, errs.Conflict) {
		t.Errorf("create after end: %v", err)
	}
	s.Walk(t.Context(), func(d tree.Digest, size int64) error { t.Errorf("object %x of %d", d, size); return nil })
	if names := left(t, s); len(names) > 0 {
		t.Errorf("left %q", names)
	}
}

func TestWalk(t *testing.T) {
	s := open(t, t.TempDir())
	b := begin(t, s)
	all := map[tree.Digest]int64{}
	for i := range 1000 {
		all[put(t, b, random(uint64(i), i))] = int64(i)
	}
	os.WriteFile(filepath.Join(s.Dir(), "ab", "foreign"), nil, 0o600)
	n := 0
	err := s.Walk(t.Context(), func(d tree.Digest, size int64) error {
		n++
		if want, ok := all[d]; !ok || want != size {
			t.Errorf("object %x of %d, want %d", d, size, want)
		}
		return nil
	})
	if err != nil || n != 1000 {
		t.Errorf("%d objects, %v", n, err)
	}
	stop := errors.New("stop")
	if err := s.Walk(t.Context(), func(tree.Digest, int64) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Walk(ctx, func(tree.Digest, int64) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestVerifyAndReplace(t *testing.T) {
	s := open(t, t.TempDir())
	b := begin(t, s)
	for _, n := range []int{1, 5000, 1 << 20, 3 << 20, 3<<20 + 7} {
		body := random(uint64(n), n)
		d := put(t, b, body)
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
		file := filepath.Join(s.Dir(), object.Name(d))
		damaged := bytes.Clone(body)
		damaged[n/2] ^= 1
		os.WriteFile(file, damaged, 0o600)
		want(t, errs.Invalid, s.Verify(t.Context(), d), "a flipped bit")
		want(t, errs.Invalid, s.Replace(d, bytes.NewReader(damaged)), "replace by another")
		if err := s.Replace(d, bytes.NewReader(body)); err != nil {
			t.Error(err)
		}
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
		os.Remove(file)
		want(t, errs.NotFound, s.Verify(t.Context(), d), "no object")
		if s.Has(d) {
			t.Error("it is gone, and Has says that it is here")
		}
		_, err := s.Open(d)
		want(t, errs.NotFound, err, "open of none")
		if err := s.Replace(d, bytes.NewReader(body)); err != nil || !s.Has(d) || !bytes.Equal(bodyOf(t, s, d), body) {
			t.Errorf("replace of none: %v", err)
		}
	}
	w, err := b.Create()
	if err != nil {
		t.Fatal(err)
	}
	body := random(9, 2<<20)
	w.Write(body)
	if done, err := w.Replace(func(tree.Digest) bool { return false }); done || err != nil {
		t.Error("replaced what nobody wants", err)
	}
	w, _ = b.Create()
	w.Write(body)
	d := tree.Digest(sha256.Sum256(body))
	if done, err := w.Replace(func(got tree.Digest) bool { return got == d }); !done || err != nil || !bytes.Equal(bodyOf(t, s, d), body) {
		t.Error("not replaced", err)
	}
	if names := left(t, s); len(names) > 0 {
		t.Errorf("left %q", names)
	}
}

// A file in the way of an object, of which the store does not know, is taken
// only if it is whole.
func TestFileInTheWay(t *testing.T) {
	s := open(t, t.TempDir())
	b := begin(t, s)
	for _, n := range []int{100, 2 << 20, 9 << 20} {
		body := random(uint64(n), n)
		d := tree.Digest(sha256.Sum256(body))
		b.Has(d) // its folder is listed
		file := filepath.Join(s.Dir(), object.Name(d))
		os.WriteFile(file, body[:n/2], 0o600)
		got, _, err := b.PutFrom(bytes.NewReader(body), int64(n))
		if err != nil || got != d || !bytes.Equal(bodyOf(t, s, d), body) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
