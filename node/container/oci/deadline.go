package oci

import (
	"context"
	"errors"
	"slices"
	"time"

	"berth/base/errs"
)

// usualTimeout is how long a command may take unless Config says otherwise.
const usualTimeout = 2 * time.Minute

// errHangs is why a command is ended that takes too long.
var errHangs = errors.New("the runtime hangs")

// unbounded are the commands that write or read the memory of a container,
// which takes as long as there is memory.
var unbounded = []string{"checkpoint", "restore"}

// bound gives a command its time.
func (p *program) bound(ctx context.Context, command string) (context.Context, context.CancelFunc) {
	if slices.Contains(unbounded, command) {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, p.timeout, errHangs)
}

// hung is the error of a command that had its time; nil where it did not take
// it all.
func (p *program) hung(ctx context.Context, command string) error {
	if !errors.Is(context.Cause(ctx), errHangs) {
		return nil
	}
	return errs.New(errs.Timeout, "runtime %s: %s did not end within %v and was killed", p.name, command, p.timeout)
}
