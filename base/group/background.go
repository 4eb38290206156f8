package group

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"

	"berth/base/errs"
)

// Background is goroutines that go on when those who began them have gone, and
// that an end waits for. The zero value is ready.
type Background struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// Go starts fn, or says no once they are closed.
func (b *Background) Go(fn func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.wg.Go(fn)
	}
	return !b.closed
}

// Close lets no more of them begin, and waits for those that have.
func (b *Background) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
}

// Guarded runs fn and makes an error of its panic: what one client sends must
// not end a node that has the others' containers to look after, and a server
// catches only what panics in its own goroutines.
func Guarded(ctx context.Context, log *slog.Logger, fn func(context.Context) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			log.ErrorContext(ctx, "an operation panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = errs.New(errs.Internal, "panic: %v", v)
		}
	}()
	return fn(ctx)
}

// Lock is a mutex that is waited for no longer than a ctx lasts.
type Lock chan struct{}

// NewLock returns one that is free.
func NewLock() Lock { return make(Lock, 1) }

// Lock takes it. A free one is taken whatever ctx says.
func (l Lock) Lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unlock gives it back.
func (l Lock) Unlock() { <-l }
