package snapshot

import (
	"context"
	"sync"
	"time"
)

// Queue hands values to one background worker of a driver; Add never waits.
type Queue[T any] struct {
	mu     sync.Mutex
	values []T
	wake   chan struct{}
}

// NewQueue makes an empty queue.
func NewQueue[T any]() *Queue[T] { return &Queue[T]{wake: make(chan struct{}, 1)} }

// Add puts values into the queue.
func (q *Queue[T]) Add(values ...T) {
	q.mu.Lock()
	q.values = append(q.values, values...)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Take waits for values and returns all that there are, or nil when ctx is
// done.
func (q *Queue[T]) Take(ctx context.Context) []T {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		}
		if values := q.TakeAll(); len(values) > 0 {
			return values
		}
	}
}

// TakeAll returns what there is without waiting.
func (q *Queue[T]) TakeAll() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	values := q.values
	q.values = nil
	return values
}

// Sweep has the folders in ids deleted until ctx is done. It first waits until
// the records that named them are gone from disk: else a crash would leave a
// snapshot with half a tree. Where that fails it is tried again, for the disk
// may be full, and somebody may make room.
func (l *Ledger) Sweep(ctx context.Context, ids *Queue[string], failed func(waiting int, err error), remove func(id string)) {
	for {
		batch := ids.Take(ctx)
		if batch == nil {
			return
		}
		if err := l.Flush(ctx); err != nil {
			if ctx.Err() == nil {
				failed(len(batch), err)
			}
			ids.Add(batch...)
			if !Rest(ctx, time.Second) {
				return
			}
			continue
		}
		for _, id := range batch {
			remove(id)
		}
	}
}

// Rest waits; it returns false when ctx is done.
func Rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// HalfTime keeps background work from taking more than half of the time.
type HalfTime struct {
	steps int
	since time.Time
}

const (
	paceSteps = 64
	paceRest  = 50 * time.Millisecond // at most
)

// NewHalfTime begins some work.
func NewHalfTime() *HalfTime { return &HalfTime{since: time.Now()} }

// Step counts one thing done, and rests after some.
func (p *HalfTime) Step(ctx context.Context) error {
	if p.steps++; p.steps%paceSteps != 0 {
		return nil
	}
	if !Rest(ctx, min(time.Since(p.since), paceRest)) {
		return ctx.Err()
	}
	p.since = time.Now()
	return nil
}
