package client

import (
	"context"
	"errors"

	"berth/base/errs"
	"berth/spec"
)

// ContainerWait waits until the container fits condition (NotRunning when "")
// and tells how it ended last. It outlives a node that goes away and comes
// back; a container that was removed meanwhile is answered too.
func (c *Client) ContainerWait(ctx context.Context, ref, condition string) (spec.Exit, error) {
	w := waiting{client: c, ref: ref, condition: condition}
	if err := w.pin(ctx); err != nil {
		return spec.Exit{}, err
	}
	var exit spec.Exit
	err := outlive(ctx, func(alive func()) (err error) {
		exit, err = w.try(ctx, alive)
		return err
	})
	return exit, err
}

// waiting is one ContainerWait. It holds the container's full id, since name
// and short id mean nothing any more once the container is removed.
type waiting struct {
	client    *Client
	ref       string
	condition string
	before    spec.ContainerState
	cut       bool // a connection broke off: the exit may have been meanwhile
}

func (w *waiting) pin(ctx context.Context) error {
	found, err := w.client.ContainerGet(ctx, w.ref)
	switch {
	case errors.Is(err, errs.NotFound):
		return nil // removed, perhaps: the node knows the exit for some minutes
	case err != nil:
		return err
	}
	w.ref, w.before = found.ID, found.State
	return nil
}

func (w *waiting) try(ctx context.Context, alive func()) (spec.Exit, error) {
	if !w.cut {
		alive() // pin has just asked
	} else if exit, ended, err := w.endedMeanwhile(ctx); ended || err != nil {
		return exit, err
	} else {
		alive()
	}
	w.cut = true
	q := query{}.str("condition", w.condition)
	return get[spec.Exit](ctx, w.client, at("containers", w.ref, "wait"), q.values())
}

// endedMeanwhile finds the exit that NextExit waits for and that came while
// nobody could tell.
func (w *waiting) endedMeanwhile(ctx context.Context) (spec.Exit, bool, error) {
	if w.condition != NextExit {
		return spec.Exit{}, false, w.client.Ping(ctx)
	}
	now, err := w.client.ContainerGet(ctx, w.ref)
	if errors.Is(err, errs.NotFound) {
		w.condition = NotRunning
		return spec.Exit{}, false, nil
	}
	if err != nil {
		return spec.Exit{}, false, err
	}
	if !now.State.FinishedAt.After(w.before.FinishedAt) {
		return spec.Exit{}, false, nil
	}
	return exitOf(now.State), true, nil
}

func exitOf(s spec.ContainerState) spec.Exit {
	return spec.Exit{Code: s.ExitCode, Unknown: s.ExitUnknown, OOMKilled: s.OOMKilled, At: s.FinishedAt, Error: s.Error}
}
