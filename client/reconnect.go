package client

import (
	"context"
	"errors"
	"time"

	"berth/base/errs"
)

// outlive runs try again and again while it fails because the node is away,
// until the node has been away for patience. try calls alive whenever it heard
// from the node. A node that has never answered is not waited for.
func outlive(ctx context.Context, try func(alive func()) error) error {
	const first, most = 20 * time.Millisecond, 500 * time.Millisecond
	var left time.Time // when the node was last known to be there
	pause := first
	for {
		heard := false
		err := try(func() { heard = true })
		if heard {
			left, pause = time.Now(), first
		}
		if !worthRetry(ctx, err) || left.IsZero() || time.Since(left) > patience {
			return plain(ctx, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, most)
	}
}

// plain is err as the caller wants to see it.
func plain(ctx context.Context, err error) error {
	if own, ok := errors.AsType[*callerError](err); ok {
		return own.err
	}
	if _, gone := errors.AsType[*goneError](err); gone && ctx.Err() != nil {
		return context.Cause(ctx) // the caller's doing
	}
	return err
}

// worthRetry: the connection broke, or a node that is shutting down cut the
// call short. What the node answers otherwise is final, and so is what the
// caller's own functions and writers say.
func worthRetry(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil {
		return false
	}
	if _, own := errors.AsType[*callerError](err); own {
		return false
	}
	_, gone := errors.AsType[*goneError](err)
	return gone || errs.KindOf(err) == errs.Canceled
}

// callerError is an error of a function or writer that the caller gave.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

func (e *callerError) Unwrap() error { return e.err }
