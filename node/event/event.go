// Package event tells what happens on a node to whoever listens.
//
// A Bus keeps the last events in a ring. Publishing never waits: a reader
// holds nothing but its place in the ring, and one that is overtaken by the
// writer gets an error instead of a gap.
package event

import (
	"context"
	"iter"
	"maps"
	"sync"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// Bus holds the last events of a node and wakes those who wait for more.
type Bus struct {
	mu   sync.Mutex
	ring []spec.Event  // event n is at (n-1) % len(ring)
	last uint64        // Seq of the newest; 0 when there is none
	more chan struct{} // closed by the next Publish; nil while nobody waits
	taps []func(spec.Event)
}

// New makes a bus that remembers capacity events.
func New(capacity int) *Bus {
	return &Bus{ring: make([]spec.Event, max(capacity, 1))}
}

// Tap has see called for each event from now on, one after the other in their
// order, before Publish returns. It must not wait for anything, nor publish
// here.
func (b *Bus) Tap(see func(spec.Event)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taps = append(b.taps, see)
}

// Publish appends an event and wakes the readers. It never blocks and keeps
// a copy of attrs.
func (b *Bus) Publish(kind, action, id string, attrs map[string]string) {
	attrs = maps.Clone(attrs)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	e := spec.Event{Seq: b.last, Time: time.Now(), Type: kind, Action: action, ID: id, Attributes: attrs}
	b.ring[(b.last-1)%uint64(len(b.ring))] = e
	for _, see := range b.taps {
		see(e)
	}
	if b.more != nil {
		close(b.more)
		b.more = nil
	}
}

// Subscribe gives the events that filter lets through, from the call on, or
// from since where that is set and as far back as the bus remembers. The
// sequence ends at until where that is set, else when ctx ends. Its last
// error is errs.Exhausted for a reader that fell too far behind. A filter
// that is not understood is errs.Invalid.
//
// The place in the stream is taken when Subscribe returns, not at the first
// read; a sequence can be read once.
func (b *Bus) Subscribe(ctx context.Context, since, until time.Time, filter spec.Filter) (iter.Seq2[spec.Event, error], error) {
	fits, err := match(filter)
	if err != nil {
		return nil, err
	}
	next := b.start(since)
	return func(yield func(spec.Event, error) bool) {
		end, stop := expiry(until)
		defer stop()
		for {
			batch, more, err := b.after(next)
			for _, e := range batch {
				next = e.Seq + 1
				if !until.IsZero() && e.Time.After(until) {
					return
				}
				if !e.Time.Before(since) && fits(e) && !yield(e, nil) {
					return
				}
			}
			switch {
			case err != nil:
				yield(spec.Event{}, err)
				return
			case len(batch) > 0:
				continue
			}
			select {
			case <-more:
			case <-end:
				return
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

// start is the Seq of the first event that a new reader may see.
func (b *Bus) start(since time.Time) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if since.IsZero() {
		return b.last + 1
	}
	return b.oldest()
}

// oldest is the lowest Seq still in the ring. The caller holds mu.
func (b *Bus) oldest() uint64 {
	if n := uint64(len(b.ring)); b.last > n {
		return b.last - n + 1
	}
	return 1
}

// batch bounds what one reader copies while it holds the lock.
const batch = 64

// after copies events from Seq next on; where there are none yet it gives a
// channel that is closed when there are.
func (b *Bus) after(next uint64) ([]spec.Event, <-chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if oldest := b.oldest(); next < oldest {
		return nil, nil, errs.New(errs.Exhausted, "events: this reader is too slow and missed %d events", oldest-next)
	}
	if next > b.last {
		if b.more == nil {
			b.more = make(chan struct{})
		}
		return nil, b.more, nil
	}
	var events []spec.Event
	for ; next <= b.last && len(events) < batch; next++ {
		events = append(events, b.ring[(next-1)%uint64(len(b.ring))])
	}
	return events, nil, nil
}

// expiry is closed-over time: a channel that fires at until, or never.
func expiry(until time.Time) (<-chan time.Time, func() bool) {
	if until.IsZero() {
		return nil, func() bool { return true }
	}
	t := time.NewTimer(time.Until(until))
	return t.C, t.Stop
}
