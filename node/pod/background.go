package pod

import (
	"context"
	"sync"
	"time"

	"berth/base/errs"
	"berth/base/group"
)

// call is work that several may wait for.
type call[T any] struct {
	done   chan struct{}
	result T
	err    error
}

// wait waits for the end of the work, or for the caller to go away.
func (c *call[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// begin starts fn, which goes on when its caller goes away and ends at the
// latest by the Set's own deadline.
func begin[T any](ctx context.Context, s *Set, fn func(context.Context) (T, error)) *call[T] {
	return beginWithin(ctx, s, s.Timeout, fn)
}

func beginWithin[T any](ctx context.Context, s *Set, atMost time.Duration, fn func(context.Context) (T, error)) *call[T] {
	c := &call[T]{done: make(chan struct{})}
	life, cancel := context.WithTimeout(context.WithoutCancel(ctx), atMost)
	stop := context.AfterFunc(s.life, cancel)
	started := s.background.Go(func() {
		defer close(c.done)
		defer cancel()
		defer stop()
		c.err = errs.Full(group.Guarded(life, s.Log, func(ctx context.Context) (err error) {
			c.result, err = fn(ctx)
			return err
		}))
	})
	if !started {
		cancel()
		c.err = errs.New(errs.Unavailable, "the node is shutting down")
		close(c.done)
	}
	return c
}

// finish runs fn to its end even if the caller goes away; the caller is then
// told so.
func (s *Set) finish(ctx context.Context, fn func(context.Context) error) error {
	return s.finishWithin(ctx, s.Timeout, fn)
}

func (s *Set) finishWithin(ctx context.Context, atMost time.Duration, fn func(context.Context) error) error {
	_, err := beginWithin(ctx, s, atMost, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) }).wait(ctx)
	return err
}

// through runs fn, which is told when its caller goes away, and waits for its
// end all the same.
func (s *Set) through(ctx context.Context, atMost time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	done := make(chan error, 1)
	if !s.background.Go(func() { done <- errs.Full(group.Guarded(ctx, s.Log, fn)) }) {
		return errs.New(errs.Unavailable, "the node is shutting down")
	}
	return <-done
}

// each runs fn for all at once and joins what failed.
func each[T any](all []T, fn func(T) error) []error {
	failed := make([]error, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		wg.Go(func() { failed[i] = fn(one) })
	}
	wg.Wait()
	return failed
}
