package object_test

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"berth/image/object"
	"berth/image/tree"
)

// Who looks for bodies that are to come sees them whole or not at all; one
// that is damaged is replaced.
func TestWatched(t *testing.T) {
	dir := t.TempDir()
	s, err := object.Open(t.Context(), object.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Watched(true)
	random := rand.NewChaCha8([32]byte{7})
	var watchers sync.WaitGroup
	for _, size := range []int{0, 1, 5000, 3 << 20, 20 << 20} {
		body := make([]byte, size)
		random.Read(body)
		d := tree.Digest(sha256.Sum256(body))
		path := filepath.Join(s.Dir(), object.Name(d))
		watchers.Go(func() {
			for {
				if st, err := os.Stat(path); err == nil {
					if st.Size() != int64(size) {
						t.Errorf("%d of %d bytes were to be seen", st.Size(), size)
					}
					return
				}
			}
		})
		if size == 5000 {
			s.Has(d) // it knows what is here from now on, so that it is surprised
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			aside := filepath.Join(dir, "aside")
			if err := os.WriteFile(aside, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(aside, path); err != nil {
				t.Fatal(err)
			}
		}
		b, err := s.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, n, err := b.PutFrom(bytes.NewReader(body), int64(size))
			if err != nil || got != d || n != int64(size) {
				t.Fatalf("%d bytes: %x, %d, %v", size, got, n, err)
			}
		}
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
		b.End()
	}
	watchers.Wait()
	left, err := filepath.Glob(filepath.Join(s.Dir(), "tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
