package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	"berth/base/errs"
	"berth/image/blob"
)

// Footprint is what is on the disk, as it was At.
type Footprint struct {
	At time.Time
	// Bytes and Inodes are of layers and blobs, each counted once; the other
	// two of what containers have written.
	Bytes, Inodes         int64
	Written, WrittenNodes int64
}

// What a measurement is worth: it is believed so long, and longer where it
// takes long, so that being asked all the time costs one part in so many of a
// processor.
const (
	believed = 10 * time.Second
	share    = 100
)

// gauge remembers the last measurement.
type gauge struct {
	mu      sync.Mutex
	last    Footprint
	took    time.Duration
	as      uint64 // listing.changed when it began
	running *measuring
}

type measuring struct {
	done chan struct{}
	err  error
}

// Footprint says what images take of the disk. It answers with what was
// measured a moment ago, unless images have come or gone since.
func (s *Set) Footprint(ctx context.Context) (Footprint, error) {
	s.mu.RLock()
	changed := s.listed.changed
	s.mu.RUnlock()
	g := &s.gauge
	g.mu.Lock()
	fresh := !g.last.At.IsZero() && g.as == changed
	if fresh && time.Since(g.last.At) < max(believed, share*g.took) {
		defer g.mu.Unlock()
		return g.last, nil
	}
	if g.running == nil {
		g.running = &measuring{done: make(chan struct{})}
		now := g.running
		s.noting.work.Go(func() { s.measure(s.noting.life, now, changed) })
	}
	now, last := g.running, g.last
	g.mu.Unlock()
	if fresh {
		return last, nil
	}
	select {
	case <-now.done:
	case <-ctx.Done():
		return last, ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last.At.IsZero() {
		return g.last, now.err
	}
	return g.last, nil
}

func (s *Set) measure(ctx context.Context, now *measuring, changed uint64) {
	begun := time.Now()
	f, err := s.footprint(ctx)
	g := &s.gauge
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		g.last, g.took, g.as = f, time.Since(begun), changed
	} else if ctx.Err() == nil {
		s.Log.WarnContext(ctx, "what images take of the disk cannot be measured", "err", err)
	}
	now.err, g.running = err, nil
	close(now.done)
}

func (s *Set) footprint(ctx context.Context) (Footprint, error) {
	f := Footprint{At: time.Now()}
	accountant, ok := s.Snapshots.(Accountant)
	if !ok {
		accountant = adder{s.Snapshots}
	}
	_, totals, err := accountant.Shares(ctx, nil)
	if err != nil {
		return f, fmt.Errorf("disk usage: %w", err)
	}
	f.Bytes, f.Inodes = totals.Objects+totals.Metadata+totals.Layers, totals.Inodes
	f.Written, f.WrittenNodes = totals.Uppers, totals.UpperInodes
	loose, err := s.Blobs.Loose()
	if err != nil {
		return f, fmt.Errorf("disk usage: %w", err)
	}
	f.Bytes += loose
	err = s.Blobs.Walk(ctx, func(info blob.Info) error {
		f.Bytes += info.Disk
		f.Inodes++
		return nil
	})
	if err != nil && errs.KindOf(err) != errs.NotFound {
		return f, fmt.Errorf("disk usage: %w", err)
	}
	return f, nil
}
