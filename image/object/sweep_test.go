package object_test

import (
	"context"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"berth/image/object"
	"berth/image/tree"
)

// Batches store the same few bodies again and again while they are swept.
// What a batch stored is here until something that named it before the end no
// longer does.
func TestPutWhileSwept(t *testing.T) {
	s := open(t, t.TempDir())
	var mu sync.Mutex
	named := map[tree.Digest]int{}
	name := func(d tree.Digest, by int) {
		mu.Lock()
		defer mu.Unlock()
		named[d] += by
	}
	var bodies [][]byte
	var digests []tree.Digest
	b := begin(t, s)
	for i := range 4 {
		bodies = append(bodies, random(uint64(i), 300+i*100_000))
		digests = append(digests, put(t, b, bodies[i]))
	}
	b.End()
	dead := iter.Seq[tree.Digest](func(yield func(tree.Digest) bool) {
		var list []tree.Digest
		mu.Lock()
		for _, d := range digests {
			if named[d] == 0 {
				list = append(list, d)
			}
		}
		mu.Unlock()
		for _, d := range list {
			if !yield(d) {
				return
			}
		}
	})
	stop := make(chan struct{})
	var swept int
	var sweeper, workers sync.WaitGroup
	sweeper.Go(func() {
		for {
			n, _, err := s.Sweep(t.Context(), dead, object.Full)
			if err != nil {
				t.Error(err)
			}
			swept += n
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for w := range 4 {
		workers.Go(func() {
			for i := range 400 {
				at := (i + w) % len(bodies)
				b, err := s.Begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				d, err := b.Put(bodies[at])
				if err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(filepath.Join(s.Dir(), object.Name(d))); err != nil {
					t.Errorf("stored, and then: %v", err)
				}
				name(d, 1)
				b.End()
				if i%20 == 0 {
					if err := s.Verify(t.Context(), d); err != nil {
						t.Error(err)
					}
				}
				if _, err := os.Stat(filepath.Join(s.Dir(), object.Name(d))); err != nil || !s.Has(d) {
					t.Errorf("named, and then: %v", err)
				}
				name(d, -1)
			}
		})
	}
	workers.Wait()
	close(stop)
	sweeper.Wait()
	if swept == 0 {
		t.Error("nothing was ever swept")
	}
	t.Logf("%d swept", swept)
}

func TestSweep(t *testing.T) {
	s := open(t, t.TempDir())
	b := begin(t, s)
	var all []tree.Digest
	for i := range 10 {
		all = append(all, put(t, b, random(uint64(i), 10_000)))
	}
	b.End()
	pins := begin(t, s)
	if !pins.Pin(all[0]) || pins.Pin(tree.Digest{1}) {
		t.Error("pin")
	}
	sweep := func(list ...tree.Digest) (int, int64) {
		t.Helper()
		n, bytes, err := s.Sweep(t.Context(), func(yield func(tree.Digest) bool) {
			pins.End() // while the sweep runs: what it held stays until it is over
			for _, d := range list {
				if !yield(d) {
					return
				}
			}
		}, object.Gentle)
		if err != nil {
			t.Error(err)
		}
		return n, bytes
	}
	if n, freed := sweep(append(all[:5:5], tree.Digest{2})...); n != 4 || freed < 40_000 {
		t.Errorf("%d swept, %d bytes, want 4", n, freed)
	}
	for i, d := range all {
		_, err := os.Stat(filepath.Join(s.Dir(), object.Name(d)))
		if here := i == 0 || i >= 5; here != (err == nil) || here != s.Has(d) {
			t.Errorf("object %d: %v", i, err)
		}
	}
	if n, _ := sweep(all[0]); n != 1 {
		t.Error("after the sweep that its batch ended in, it is still kept")
	}
	if err := os.Link(filepath.Join(s.Dir(), object.Name(all[9])), filepath.Join(t.TempDir(), "upper")); err == nil {
		if n, freed := sweep(all[9]); n != 1 || freed != 0 {
			t.Errorf("%d swept, %d bytes, of what an upper has too", n, freed)
		}
	}
}

func TestSweepIsCancelled(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, _, err := s.Sweep(ctx, func(yield func(tree.Digest) bool) {
		for yield(tree.Digest{byte(n)}) {
			if n++; n == 10 {
				cancel()
			}
		}
	}, object.Gentle)
	if !errors.Is(err, context.Canceled) || n > 11 {
		t.Errorf("after %d: %v", n, err)
	}
}

func BenchmarkBegin(b *testing.B) {
	s := open(b, b.TempDir())
	for b.Loop() {
		batch, err := s.Begin(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		batch.End()
		if err := s.Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
