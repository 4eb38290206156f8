package container

import (
	"context"
	"fmt"

	"berth/node/logfile"
)

// Output gives fn what the container writes from now on, as it is written, and
// ends with the run that is there, or that is the container's next. It is read
// from the log, and so outlives whoever writes and renames that. What is in data
// is fn's only until it returns.
func (s *Set) Output(ctx context.Context, ref string, fn func(stream logfile.Stream, data []byte) error) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.logged(); err != nil {
		return err
	}
	ended := c.ending().done
	path := c.get().LogPath
	from, err := logfile.End(path)
	if err != nil {
		return err
	}
	q := logfile.Query{From: from, Tail: -1, Follow: true, Ended: ended}
	var buf []byte
	return logfile.Read(ctx, path, q, func(l logfile.Line) error {
		buf = append(buf[:0], l.Text...)
		if !l.Partial {
			buf = append(buf, '\n')
		}
		return fn(l.Stream, buf)
	})
}

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
