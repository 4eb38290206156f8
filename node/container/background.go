package container

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"berth/base/errs"
)

// background is the goroutines of a Set.
type background struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// run starts fn, or says no once they are closed.
func (b *background) run(fn func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.wg.Go(fn)
	}
	return !b.closed
}

func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
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
		// What one client sends must not end the node, which has the others'
		// containers to look after: this is not the goroutine whose panics its
		// server turns into errors.
		defer func() {
			if v := recover(); v != nil {
				s.Log.ErrorContext(life, "an operation panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				done <- errs.New(errs.Internal, "panic: %v", v)
			}
		}()
		done <- fn(life)
	}
	if !s.background.run(work) {
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
