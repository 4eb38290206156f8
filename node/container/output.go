package container

import (
	"context"
	"fmt"

	"berth/node/logfile"
)

// Output is what a container writes, from the moment that it was asked for.
type Output struct {
	log *logfile.Reader
	buf []byte
}

// Output begins to listen to a container. It is read from the log, and so
// outlives whoever writes that, and those who rename it.
func (s *Set) Output(_ context.Context, ref string) (*Output, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if err := c.logged(); err != nil {
		return nil, err
	}
	ended := c.followed()
	path := c.get().LogPath
	from, err := logfile.End(path)
	if err != nil {
		return nil, err
	}
	log, err := logfile.Open(path, logfile.Query{From: from, Tail: -1, Follow: true, Ended: ended})
	if err != nil {
		return nil, fmt.Errorf("output of container %s: %w", c.name(), err)
	}
	return &Output{log: log}, nil
}

// Each gives fn all of it, as it was written, until the container has ended.
// What is in data is fn's only until that returns. It may be called once.
func (o *Output) Each(ctx context.Context, fn func(stderr bool, data []byte) error) error {
	return o.log.Each(ctx, func(l logfile.Line) error {
		o.buf = append(o.buf[:0], l.Text...)
		if !l.Partial {
			o.buf = append(o.buf, '\n')
		}
		if len(o.buf) == 0 { // a line that ended with the keeper's patience
			return nil
		}
		return fn(l.Stream == logfile.Stderr, o.buf)
	})
}

// Close stops listening, when Each has returned.
func (o *Output) Close() { o.log.Close() }

// ReopenLog has the container's output go to a new file of the same name, after
// somebody has renamed the old one. errs.Conflict: it does not run.
func (s *Set) ReopenLog(ctx context.Context, ref string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.logged(); err != nil {
		return err
	}
	if c.current() == nil {
		return running(c.get())
	}
	if err := s.Processes.ReopenLog(ctx, c.id); err != nil {
		return fmt.Errorf("log of container %s: %w", c.name(), err)
	}
	return nil
}
