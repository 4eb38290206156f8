package object

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// Pace is the share of the time that work in the background takes.
type Pace float64

// Paces.
const (
	Gentle Pace = 0.1 // nobody notices
	Full   Pace = 1
)

// slice is how long work goes on before it pauses.
const slice = 5 * time.Millisecond

// Rest pauses, where work has gone on since start for a while, for as long as
// the pace wants, and returns the new start.
func (p Pace) Rest(ctx context.Context, start time.Time) (time.Time, error) {
	worked := time.Since(start)
	if p >= 1 || worked < slice {
		return start, ctx.Err()
	}
	pause := time.NewTimer(time.Duration(float64(worked) * (1/max(float64(p), 0.001) - 1)))
	defer pause.Stop()
	select {
	case <-pause.C:
		return time.Now(), nil
	case <-ctx.Done():
		return start, context.Cause(ctx)
	}
}

// sweeps are the one sweep at a time, and the batches that ended during it.
type sweeps struct {
	turn    sync.Mutex
	mu      sync.Mutex
	running bool
	ended   []*Batch
}

// release lets go of what b held, now or after the sweep that runs.
func (w *sweeps) release(b *Batch) {
	w.mu.Lock()
	wait := w.running
	if wait {
		w.ended = append(w.ended, b)
	}
	w.mu.Unlock()
	if !wait {
		b.letGo()
	}
}

func (w *sweeps) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = true
}

func (w *sweeps) end() {
	w.mu.Lock()
	ended := w.ended
	w.running, w.ended = false, nil
	w.mu.Unlock()
	for _, b := range ended {
		b.letGo()
	}
}

func (b *Batch) letGo() {
	for i := range b.held {
		sh := &b.store.shards[i]
		sh.mu.Lock()
		for _, k := range b.held[i] {
			if sh.pinned[k]--; sh.pinned[k] == 0 {
				delete(sh.pinned, k)
			}
		}
		b.held[i] = nil
		sh.mu.Unlock()
	}
}

// Sweep deletes the bodies that dead gives, but for those that a batch holds,
// and says how many those were and the bytes that became free.
//
// dead is asked for the first body only after the sweep has begun, and must
// look only then at what names bodies: so what a batch stored is either named
// by what dead sees, or the batch's end is seen by the sweep. One sweep runs
// at a time.
func (s *Store) Sweep(ctx context.Context, dead iter.Seq[tree.Digest], pace Pace) (n int, bytes int64, err error) {
	s.sweeps.turn.Lock()
	defer s.sweeps.turn.Unlock()
	s.sweeps.start()
	defer s.sweeps.end()
	start := time.Now()
	for d := range dead {
		if start, err = pace.Rest(ctx, start); err != nil {
			return n, bytes, err
		}
		freed, found, err := s.sweep(d)
		if err != nil {
			return n, bytes, fmt.Errorf("sweep object %x: %w", d, err)
		}
		if found {
			n++
			bytes += freed
		}
	}
	return n, bytes, nil
}

// sweep deletes one body. Whoever stores it meanwhile waits for that, and
// stores it anew.
func (s *Store) sweep(d tree.Digest) (freed int64, found bool, err error) {
	sh, k := s.shard(d), keyOf(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if err := sh.load(s); err != nil || sh.dir < 0 {
		return 0, false, err
	}
	sh.claim(k)
	defer sh.release(k)
	if sh.pinned[k] > 0 {
		return 0, false, nil
	}
	was := sh.known.has(k)
	sh.known.remove(k)
	sh.mu.Unlock()
	var st unix.Stat_t
	err = unix.Fstatat(sh.dir, name(d), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.Unlinkat(sh.dir, name(d), 0)
	}
	sh.mu.Lock()
	switch {
	case err == unix.ENOENT:
		return 0, false, nil
	case err != nil:
		if was {
			sh.known.add(k)
		}
		return 0, false, err
	case st.Nlink > 1: // an upper has it too
		return 0, true, nil
	}
	return st.Blocks * 512, true, nil
}
