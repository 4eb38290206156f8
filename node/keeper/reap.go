package keeper

import (
	"errors"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settleLimit bounds how long the report of an exit waits for output.
const settleLimit = 100 * time.Millisecond

// end is how a process ended that nobody asked for yet.
type end struct {
	status unix.WaitStatus
	at     time.Time
}

// reap collects every child that has ended: runtime commands, processes,
// and orphans that fell to us because we are their subreaper. It is the only
// place that waits, so none can take another's status.
func (s *server) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := s.children[pid]; c != nil {
			delete(s.children, pid)
			s.work.Go(func() { s.finish(c, Exit{Code: exitCode(status), Known: true, At: time.Now()}) })
		} else if ended := s.runtimes[pid]; ended != nil {
			delete(s.runtimes, pid)
			ended <- status
		} else if s.launching > 0 { // perhaps a process whose pid file is not read yet
			s.strays[pid] = end{status, time.Now()}
		}
	}
}

// fork starts a runtime command. Its status arrives on the channel.
func (s *server) fork(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan unix.WaitStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	s.restoreOOM(pid)
	ended := make(chan unix.WaitStatus, 1)
	s.runtimes[pid] = ended
	return pid, ended, nil
}

// killRuntime kills the command and what it started in its process group.
func (s *server) killRuntime(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runtimes[pid] != nil { // not reaped, so the pid is still its
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
}

// adopt watches over c from now on.
func (s *server) adopt(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes[c.ID] = c
	if e, ok := s.strays[c.Pid]; ok { // shorter than its own start
		delete(s.strays, c.Pid)
		s.work.Go(func() { s.finish(c, Exit{Code: exitCode(e.status), Known: true, At: e.at}) })
		return
	}
	s.children[c.Pid], c.awaited = c, true
	fd, err := unix.PidfdOpen(c.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) { // not even a zombie: some other's child
			delete(s.children, c.Pid)
			s.work.Go(func() { s.finish(c, Exit{At: time.Now()}) })
		}
		return
	}
	c.fds[rolePidfd] = fd
	// A runtime may return before the process that forked ours is gone: ours is
	// not our child yet, but most likely will be, so it stays among them.
	if !isChild(fd) {
		s.watch(c)
	}
}

// isChild reports whether we are the one who may wait for a process.
func isChild(pidfd int) bool {
	err := unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return !errors.Is(err, unix.ECHILD)
}

// watch waits for the end of a process that is not our child, or not yet.
// Call it with s.mu held.
func (s *server) watch(c *child) {
	c.pidfd = os.NewFile(uintptr(c.fds[rolePidfd]), "pidfd")
	fd := c.fds[rolePidfd]
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		s.log.Error("process cannot be watched", slog.String("id", c.ID), slog.Any("err", err))
		return
	}
	s.work.Go(func() {
		if raw.Read(func(uintptr) bool { return readable(fd, 0) }) != nil {
			return // forgotten
		}
		if s.becameChild(c) {
			s.reap()
			return
		}
		code, known := fate(fd, c.Pid)
		if s.claim(c) {
			s.finish(c, Exit{Code: code, Known: known, At: time.Now()})
		}
	})
}

// becameChild reports whether an ended process that we watched has meanwhile
// fallen to us, so that reap tells its end or has done so. If not, it may still
// fall to us, should its parent end without having waited for it.
func (s *server) becameChild(c *child) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.awaited {
		return false // handed over by an earlier keeper
	}
	if s.children[c.Pid] != c {
		return true // reaped
	}
	return isChild(c.fds[rolePidfd])
}

// claim reports whether the end of a process that we watched is to be told by
// whoever asks; if not, reap was first.
func (s *server) claim(c *child) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.awaited {
		return true
	}
	if s.children[c.Pid] != c {
		return false
	}
	delete(s.children, c.Pid)
	return true
}

// finish records an end, once its output is in the log, and tells node.
func (s *server) finish(c *child, e Exit) {
	e.ID, e.Pid = c.ID, c.Pid
	s.mu.Lock()
	if peer, ok := c.fds[rolePeer]; ok {
		_ = unix.Close(peer)
		delete(c.fds, rolePeer)
	}
	s.mu.Unlock()
	s.leave(c)
	<-c.told
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Exit = &e
	s.tell(message{Op: opExit, Exit: &e})
}

func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// readable waits up to ms milliseconds. For a pidfd it means: has ended.
func readable(fd, ms int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, ms)
	return err == nil && n == 1
}

// reapedLimit bounds the wait for a stranger's parent to reap it.
const reapedLimit = 2000 // ms

// fate finds out how the process behind an exited pidfd ended, which is
// somebody else's child or was.
func fate(fd, pid int) (code int, known bool) {
	if code, ok := exitInfo(fd); ok {
		return code, true
	}
	if code, ok := zombieStatus(fd, pid); ok {
		return code, true
	}
	// Its parent reaps it about now. POLLHUP, which poll always reports,
	// says that this has happened.
	p := []unix.PollFd{{Fd: int32(fd)}}
	_, _ = unix.Poll(p, reapedLimit)
	return exitInfo(fd)
}

// exitInfo asks the pidfd: the kernel (6.15 and newer) keeps the code there
// once the process has been reaped.
func exitInfo(fd int) (code int, ok bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := pidfdInfo(fd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return exitCode(unix.WaitStatus(info.Exit_code)), true
}

// zombieStatus reads the code of a process that nobody has reaped yet from
// /proc/<pid>/stat, where it is the last field.
func zombieStatus(fd, pid int) (code int, ok bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		return 0, false // reaped, so the pid may be another's by now
	}
	status, ok := parseStat(string(data))
	return exitCode(unix.WaitStatus(status)), ok
}
