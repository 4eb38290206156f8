package container

import (
	"context"
	"errors"
	"strconv"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// Prune removes the containers that do not run. Filters: label label! until.
func (s *Set) Prune(ctx context.Context, filter spec.Filter) (spec.Pruned, error) {
	pruned := spec.Pruned{Removed: []string{}}
	rest, until, err := splitUntil(filter)
	if err != nil {
		return pruned, err
	}
	fits, err := s.compile(ctx, rest)
	if err != nil {
		return pruned, err
	}
	for _, c := range s.all() {
		view := c.get()
		if busy(view.State.Status) || s.isAnothers(c) || !fits(view) || !until.IsZero() && !view.Created.Before(until) {
			continue
		}
		var usage snapshot.Usage
		if c.given.Load() == nil { // what another client has made stays
			usage, _ = s.Snapshots.Usage(ctx, snapshot.Key(c.id)) // of one in the middle of its removal there is none
		}
		err := s.finish(ctx, func(ctx context.Context) error { return s.removeFound(ctx, c, false, false) })
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Conflict) {
			continue // somebody was faster
		}
		if err != nil {
			return pruned, err
		}
		pruned.Removed = append(pruned.Removed, view.ID)
		pruned.Reclaimed += usage.Size
	}
	return pruned, nil
}

// isAnothers says whether a container is none of the node's business: a client
// has made it and is about to run it, or it is in that client's own namespace.
func (s *Set) isAnothers(c *container) bool {
	view := c.get()
	return c.given.Load() != nil && (view.State.Status == spec.Created || view.Namespace != spec.DefaultNamespace)
}

// splitUntil takes the key until, of which the earliest counts, and checks
// that only keys of prune are there.
func splitUntil(filter spec.Filter) (rest spec.Filter, until time.Time, err error) {
	rest = spec.Filter{}
	for key, values := range filter {
		switch key {
		case "label", "label!":
			rest[key] = values
		case "until":
			for _, value := range values {
				t, err := moment(value)
				if err != nil {
					return nil, until, err
				}
				if until.IsZero() || t.Before(until) {
					until = t
				}
			}
		default:
			return nil, until, errs.New(errs.Invalid, "prune cannot filter by %q: label, label! or until", key)
		}
	}
	return rest, until, nil
}

// moment reads a duration before now, seconds since 1970, or a time.
func moment(value string) (time.Time, error) {
	if d, err := time.ParseDuration(value); err == nil {
		return time.Now().Add(-d), nil
	}
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Unix(seconds, 0), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, value, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errs.New(errs.Invalid, "until=%s: want a duration such as 24h, seconds since 1970, or a time", value)
}
