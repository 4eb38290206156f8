package container

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// Stdin writes to the container's stdin or terminal. Where the container does
// not run yet, writes wait for its start. Close tells the container that no
// more will come, if it has StdinOnce and no terminal; a writer that is just
// dropped leaves stdin open for those to come. The writer ends with ctx.
// errs.Conflict: the container was made without OpenStdin.
func (s *Set) Stdin(ctx context.Context, ref string) (io.WriteCloser, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if err := c.logged(); err != nil {
		return nil, err
	}
	if !c.get().Config.OpenStdin {
		return nil, errs.New(errs.Conflict, "container %s was made without an open stdin", c.name())
	}
	return &stdin{ctx: ctx, c: c}, nil
}

// stdin writes to the run that is there at the first write.
type stdin struct {
	ctx context.Context //nolint:containedctx // a writer has no other way to wait with one
	c   *container
	run *run
}

func (w *stdin) Write(p []byte) (int, error) {
	if err := w.await(); err != nil {
		return 0, err
	}
	switch process := w.run.process; {
	case process.Console != nil:
		return w.write(process.Console, p)
	case process.Stdin != nil:
		return w.write(process.Stdin, p)
	}
	return 0, io.ErrClosedPipe
}

// write gives up with ctx, also in the middle of a write to a process that
// does not read. Other writers on the same file then try again.
func (w *stdin) write(to io.Writer, p []byte) (written int, err error) {
	timed, ok := to.(interface{ SetWriteDeadline(t time.Time) error })
	if !ok {
		return to.Write(p)
	}
	stop := context.AfterFunc(w.ctx, func() { _ = timed.SetWriteDeadline(time.Unix(1, 0)) }) // no pipe: it waits
	defer func() {
		if !stop() {
			_ = timed.SetWriteDeadline(time.Time{})
		}
	}()
	for {
		n, err := to.Write(p[written:])
		written += n
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
		if w.ctx.Err() != nil {
			return written, w.ctx.Err()
		}
	}
}

// Close ends the process's stdin, if it was made to be fed once.
func (w *stdin) Close() error {
	config := w.c.get().Config
	if config.TTY || !config.StdinOnce {
		return nil
	}
	if err := w.await(); err != nil {
		return err
	}
	if w.run.process.CloseStdin == nil {
		return nil
	}
	return w.run.process.CloseStdin(w.ctx)
}

// await waits for the container to run.
func (w *stdin) await() error {
	for w.run == nil {
		_, _, changed := w.c.watch()
		if w.run = w.c.current(); w.run != nil {
			return nil
		}
		if w.c.isGone() {
			return errs.New(errs.NotFound, "container %s was removed", w.c.name())
		}
		select {
		case <-changed:
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
	}
	return nil
}

// Resize sets the size of the container's terminal. errs.Conflict: it has none.
func (s *Set) Resize(ctx context.Context, ref string, size spec.Size) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	r := c.current()
	if r == nil {
		return running(c.get())
	}
	if err := s.resize(ctx, c, r.process.Console, "", size); err != nil {
		return err
	}
	s.publish(c.get(), "resize")
	return nil
}
