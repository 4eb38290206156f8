package container

import (
	"context"
	"sync"
)

// tasks are the goroutines of a Set.
type tasks struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// run starts fn, or says no once the tasks are closed.
func (t *tasks) run(fn func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.wg.Go(fn)
	}
	return !t.closed
}

func (t *tasks) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wg.Wait()
}

// finish runs fn to its end even if the caller goes away; the caller is then
// told so. A Set that is closed lets fn see a ctx that is done.
func (s *Set) finish(ctx context.Context, fn func(context.Context) error) error {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.life, cancel)
	done := make(chan error, 1)
	work := func() {
		defer cancel()
		defer stop()
		done <- fn(life)
	}
	if !s.tasks.run(work) {
		cancel()
		work()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
