package container

import (
	"context"

	"berth/base/group"
)

// finish runs fn to its end even if the caller goes away; the caller is then
// told so. A Set that is closed lets fn see a ctx that is done.
func (s *Set) finish(ctx context.Context, fn func(context.Context) error) error {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.life, cancel)
	done := make(chan error, 1)
	work := func() {
		defer cancel()
		defer stop()
		done <- group.Guarded(life, s.Log, fn)
	}
	if !s.background.Go(work) {
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
