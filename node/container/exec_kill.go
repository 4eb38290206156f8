package container

import (
	"context"
	"fmt"
	"syscall"

	"berth/base/errs"
)

// KillExec sends a signal to the process of an exec and to those that it has
// started. errs.NotFound: it has ended. errs.Conflict: it was not started yet.
func (s *Set) KillExec(ctx context.Context, id string, sig syscall.Signal) error {
	e, err := s.findExec(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	ended, pid := !e.ended.IsZero(), e.pid
	e.mu.Unlock()
	switch {
	case ended:
		return errs.New(errs.NotFound, "exec %s has ended", id)
	case pid == 0:
		return errs.New(errs.Conflict, "exec %s was not started yet", id)
	}
	r, err := s.runtime(e.container.get())
	if err != nil {
		return err
	}
	if signaler, ok := r.(execSignaler); ok {
		err = signaler.SignalExec(ctx, e.container.id, e.id, sig)
	} else {
		err = s.Processes.SignalGroup(e.id, sig)
	}
	if err != nil {
		return fmt.Errorf("signal exec %s: %w", id, err)
	}
	return nil
}
