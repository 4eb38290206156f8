package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// EventOptions says which events are wanted.
type EventOptions struct {
	Since, Until time.Time // zero: from now on, without end
	Filter       spec.Filter
}

// Events gives the node's events to fn until ctx is done, fn fails, or Until
// has passed. A node that goes away and comes back is waited for; what happened
// there meanwhile is told when it is back, as far as the node kept it.
func (c *Client) Events(ctx context.Context, opts EventOptions, fn func(spec.Event) error) error {
	last := ""
	return outlive(ctx, func(alive func()) error {
		return c.eventsFrom(ctx, opts, &last, alive, fn)
	})
}

func (c *Client) eventsFrom(ctx context.Context, opts EventOptions, last *string, alive func(), fn func(spec.Event) error) error {
	q := query{}.time("since", opts.Since).time("until", opts.Until).filter(opts.Filter)
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/events", query: q.values(), after: *last})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	alive()
	return c.eachEvent(ctx, resp.Body, func(se serverEvent) error {
		alive()
		return giveEvent(se, last, fn)
	})
}

func giveEvent(se serverEvent, last *string, fn func(spec.Event) error) error {
	if se.data == nil {
		*last = se.id
		return nil
	}
	if se.kind == "problem" {
		var p spec.Problem
		if err := json.Unmarshal(se.data, &p); err != nil {
			return errs.New(errs.Unavailable, "the node broke off its events")
		}
		return asError(p)
	}
	var ev spec.Event
	if err := json.Unmarshal(se.data, &ev); err != nil {
		return errs.New(errs.Invalid, "read an event: %w", err)
	}
	if err := fn(ev); err != nil {
		return &callerError{err}
	}
	*last = se.id
	return nil
}
