package container

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// terminal reads a terminal's master; it ends when the last process on the
// other side is gone, which the kernel reports as an input error.
type terminal struct{ *os.File }

func (t terminal) Read(p []byte) (int, error) {
	n, err := t.File.Read(p)
	if errors.Is(err, syscall.EIO) {
		err = io.EOF
	}
	return n, err
}

// stdinOf is a pipe that is closed wherever it is held open.
type stdinOf struct {
	io.Writer
	end func(ctx context.Context) error
	ctx context.Context //nolint:containedctx // an io.Closer has no other way to get one
}

func (s stdinOf) Close() error { return s.end(s.ctx) }

func resize(console *os.File, size spec.Size) error {
	if console == nil {
		return errs.New(errs.Conflict, "there is no terminal to resize")
	}
	raw, err := console.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	return errors.Join(err, failed)
}
