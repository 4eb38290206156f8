package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Start lets the process of a created container go.
//
// runc and crun have it wait at a FIFO among their records, and all that their
// start does besides is to run hooks. So without hooks no program is run.
func (r *Runtime) Start(ctx context.Context, id string) error {
	b, err := r.bundle(id)
	if err != nil {
		return err
	}
	if b.choice.Restored {
		return r.freeze(ctx, id, false)
	}
	if !b.program.foreign && b.Hooks.Poststart == nil {
		if done, err := r.startDirectly(ctx, id, b.program.records(b.id(id))); done || err != nil {
			return err
		}
	}
	return b.program.run(ctx, nil, "start", b.id(id))
}

// startDirectly does what the program's start would do, if the records are
// such as it knows. With false nothing was done.
func (r *Runtime) startDirectly(ctx context.Context, id, records string) (done bool, err error) {
	p, found := r.keeper.Process(id)
	if !found || p.Pidfd == nil || p.Exit != nil {
		return false, nil
	}
	fifo := filepath.Join(records, "exec.fifo")
	if info, err := os.Lstat(fifo); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		return false, nil
	}
	switch {
	case exists(filepath.Join(records, "state.json")):
		done, err = releaseRunc(ctx, fifo, p.Pidfd)
	case exists(filepath.Join(records, "status")):
		done, err = releaseCrun(fifo)
	}
	if err != nil {
		return false, fmt.Errorf("runtime %s: start %s: %w", r.name, id, err)
	}
	return done, nil
}

// releaseRunc reads what runc's process writes when somebody has opened the
// FIFO to read. Then the FIFO goes, by which runc knows that it is running.
func releaseRunc(ctx context.Context, fifo string, pidfd *os.File) (bool, error) {
	fd, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return false, err
	}
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Events: unix.POLLIN}}
		if err := raw.Control(func(pid uintptr) {
			fds[1].Fd = int32(pid)
			_, _ = unix.Poll(fds, int(glance.Milliseconds()))
		}); err != nil {
			return false, err
		}
		var word [16]byte
		switch n, err := unix.Read(fd, word[:]); {
		case n > 0:
			return true, ignoreMissing(os.Remove(fifo))
		case fds[1].Revents != 0:
			return false, errs.New(errs.Conflict, "its process has ended")
		case n < 0 && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return false, err
		case ctx.Err() != nil:
			return false, ctx.Err()
		}
	}
}

// glance is how long one look at a descriptor lasts.
const glance = 50 * time.Millisecond

// releaseCrun writes the byte that crun's process waits for. The FIFO goes
// first, as with crun: whoever comes second does not find it.
func releaseCrun(fifo string) (bool, error) {
	fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.ENXIO):
		return false, errs.New(errs.Conflict, "its process has ended")
	case err != nil:
		return false, err
	}
	defer unix.Close(fd)
	if err := os.Remove(fifo); err != nil {
		return false, ignoreMissing(err)
	}
	_, err = unix.Write(fd, []byte{0})
	return err == nil, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
