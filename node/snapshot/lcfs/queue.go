package lcfs

import (
	"context"
	"sync"
)

// queue hands values to one background worker; add never waits.
type queue[T any] struct {
	mu     sync.Mutex
	values []T
	wake   chan struct{}
}

func (q *queue[T]) init() { q.wake = make(chan struct{}, 1) }

func (q *queue[T]) add(values ...T) {
	q.mu.Lock()
	q.values = append(q.values, values...)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for values and returns all that there are, or nil when ctx is
// done.
func (q *queue[T]) take(ctx context.Context) []T {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		}
		if values := q.takeAll(); len(values) > 0 {
			return values
		}
	}
}

// wait waits for values and says how many there are; it leaves them.
func (q *queue[T]) wait(ctx context.Context) int {
	select {
	case <-ctx.Done():
	case <-q.wake:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.values)
}

func (q *queue[T]) takeAll() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	values := q.values
	q.values = nil
	return values
}
