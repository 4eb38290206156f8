package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

const (
	loggerLimit = 10 * time.Second // to be ready
	loggerRest  = 10 * time.Second // to end by itself, and once more after it was asked to
)

// startLogger starts the program that reads what the process says, and waits
// until it is ready. Its environment is two names, as loggers know it.
func (s *server) startLogger(ctx context.Context, l *Launch, p *plumbing) error {
	path, err := exec.LookPath(p.logger.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errs.New(errs.NotFound, "logger %s: there is no such program", p.logger.path)
	case err != nil:
		return errs.New(errs.Invalid, "logger %s: %w", p.logger.path, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("logger: %w", err)
	}
	defer null.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("logger: %w", err)
	}
	defer ready.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd(), null.Fd(), null.Fd(), theirs.Fd()}
	for i, fd := range p.listens {
		if fd >= 0 {
			files[3+i] = uintptr(fd)
		}
	}
	pid, ended, err := s.fork(path, append([]string{path}, p.logger.args...), &syscall.ProcAttr{
		Dir: "/", Env: []string{"CONTAINER_ID=" + l.Streams.Name, "CONTAINER_NAMESPACE=" + l.Streams.Namespace},
		Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = theirs.Close()
	if err != nil {
		return errs.New(errs.Invalid, "logger %s: %w", path, err)
	}
	if fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK); err == nil {
		p.ours[roleLogger] = fd
	}
	p.deafen()
	return s.awaitLogger(ctx, p, pid, ready, ended)
}

// awaitLogger reads the logger's word that it is ready: a byte, or the end,
// which is also what a logger that dies says.
func (s *server) awaitLogger(ctx context.Context, p *plumbing, pid int, ready *os.File, ended <-chan unix.WaitStatus) error {
	limit := s.config.LoggerLimit
	if limit == 0 {
		limit = loggerLimit
	}
	_ = ready.SetReadDeadline(time.Now().Add(limit))
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	_, err := ready.Read(make([]byte, 1))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errs.New(errs.Canceled, "logger %s: canceled", p.logger.path)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.New(errs.Timeout, "logger %s: not ready after %v", p.logger.path, limit)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("logger %s: %w", p.logger.path, err)
	}
	if exiting(pid) {
		select {
		case status := <-ended:
			return errs.New(errs.Unavailable, "logger %s: ended with code %d before it was ready", p.logger.path, exitCode(status))
		case <-time.After(limit):
		}
	} else if p.logger.scheme == "binary" && p.heard() {
		return nil
	}
	return errs.New(errs.Unavailable, "logger %s: closed its streams without a word", p.logger.path)
}

// exiting says whether a process is on its way out, or gone. The kernel closes
// its files after it says so.
func exiting(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if err != nil || len(fields) < 7 {
		return true
	}
	const leaving = 0x4 // PF_EXITING
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err != nil || flags&leaving != 0
}

// dying is how long the streams of one process may close apart from each other.
const dying = 2 * time.Millisecond

// heard says whether somebody still reads what the process is going to write:
// of a pipe that nobody reads the writer is told.
func (p *plumbing) heard() bool {
	var fds []unix.PollFd
	for _, w := range []int{p.theirs[1], p.theirs[2], p.ours[roleOut]} {
		if w > 0 {
			fds = append(fds, unix.PollFd{Fd: int32(w)})
		}
	}
	n, err := unix.Poll(fds, int(dying.Milliseconds()))
	return err == nil && n == 0
}

// endLogger takes a process's logger out of fds. Nobody can write to it any
// more, so it ends by itself; if not in time, or now where that is asked for,
// it is told to.
func (s *server) endLogger(fds map[role]int, now bool) {
	fd, there := fds[roleLogger]
	if !there {
		return
	}
	delete(fds, roleLogger)
	if ready(fd, unix.POLLIN) {
		_ = unix.Close(fd)
		return
	}
	pidfd := os.NewFile(uintptr(fd), "logger")
	s.work.Go(func() {
		defer pidfd.Close()
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
			if now {
				_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
			}
			_ = pidfd.SetReadDeadline(time.Now().Add(loggerRest))
			raw, err := pidfd.SyscallConn()
			if err != nil || raw.Read(func(uintptr) bool { return ready(fd, unix.POLLIN) }) == nil {
				return
			}
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
	})
}
