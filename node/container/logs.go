package container

import (
	"context"

	"berth/base/errs"
	"berth/node/logfile"
	"berth/spec"
)

// Logs gives the container's output to fn. With q.Follow it ends when q.Ended
// is closed and all is read. Where that is nil, it ends when the run ends that
// is there now, or that will be the container's first; what has ended before
// is not followed.
func (s *Set) Logs(ctx context.Context, ref string, q logfile.Query, fn func(logfile.Line) error) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.logged(); err != nil {
		return err
	}
	if q.Follow && q.Ended == nil {
		q.Ended = c.followed()
	}
	return logfile.Read(ctx, c.get().LogPath, q, fn)
}

// NextEnd is closed when the run ends that is there now or, for a container
// that does not run, the next one; and when the container is removed. Who
// attaches before a start follows the log until then.
func (s *Set) NextEnd(_ context.Context, ref string) (<-chan struct{}, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	return c.ending().done, nil
}

// followed is closed when nothing more is to be expected in the log.
func (c *container) followed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil || c.view.Load().State.Status == spec.Created {
		return c.end.done
	}
	over := make(chan struct{})
	close(over)
	return over
}

// LogPosition is where the log ends now: what is read from there is new.
func (s *Set) LogPosition(_ context.Context, ref string) (logfile.Position, error) {
	c, err := s.find(ref)
	if err != nil {
		return "", err
	}
	if err := c.logged(); err != nil {
		return "", err
	}
	return logfile.End(c.get().LogPath)
}

// logged fails with errs.Unsupported where the output is not the node's, and
// says where it goes.
func (c *container) logged() error {
	g := c.given.Load()
	if g == nil || g.Owned && !g.Quiet {
		return nil
	}
	c.mu.Lock()
	request := c.request
	c.mu.Unlock()
	if request != nil && request.Log != nil {
		return nil
	}
	where := ""
	if request != nil {
		where = orElse(request.Streams.Stdout, request.Streams.Stderr)
	}
	return errs.New(errs.Unsupported, "container %s was made by another client, which has its output: %s", c.name(), orElse(where, "it goes nowhere"))
}
