package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// plumbing is the descriptors of one launch: ours by role, and those that
// the runtime gets as 0, 1 and 2.
type plumbing struct {
	nulls   *nulls
	ours    map[role]int
	theirs  [3]int
	capture int // what the runtime itself says; -1: nowhere
	socket  *net.UnixListener
	logger  *place
	listens [2]int // what the logger reads; -1: nothing
}

func newPlumbing(n *nulls) *plumbing {
	return &plumbing{nulls: n, ours: map[role]int{}, theirs: [3]int{-1, -1, -1}, capture: -1, listens: [2]int{-1, -1}}
}

func (p *plumbing) null(i int) (err error) {
	p.theirs[i], err = p.nulls.open()
	return err
}

func lay(l *Launch, n *nulls) (_ *plumbing, err error) {
	if l.Streams != nil {
		return layGiven(l, n)
	}
	p := newPlumbing(n)
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	null := func(i int) {
		if err == nil {
			err = p.null(i)
		}
	}
	output := func(i int) (fd int) {
		fd = -1
		if err == nil {
			fd, p.theirs[i], err = pipe()
		}
		return fd
	}
	switch {
	case l.ConsoleSocket != "":
		null(0)
		if p.capture = output(2); err == nil {
			p.theirs[1], err = unix.FcntlInt(uintptr(p.theirs[2]), unix.F_DUPFD_CLOEXEC, 0)
		}
		if err == nil {
			_ = os.Remove(l.ConsoleSocket)
			p.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: l.ConsoleSocket, Net: "unix"})
		}
	case l.Output == Discard:
		null(1)
		null(2)
	default:
		p.ours[roleStdout] = output(1)
		p.ours[roleStderr] = output(2)
		p.capture = p.ours[roleStderr]
	}
	if l.ConsoleSocket == "" && l.Stdin && err == nil {
		var in int
		if p.theirs[0], in, err = pipe(); err == nil {
			p.ours[roleStdin] = in
			err = errors.Join(unix.SetNonblock(in, true), unix.SetNonblock(p.theirs[0], false))
		}
	} else if l.ConsoleSocket == "" {
		null(0)
	}
	if l.Output == ToLog && err == nil {
		var hold [2]int
		if err = unix.Pipe2(hold[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err == nil {
			p.ours[roleHoldOut], p.ours[roleHoldIn] = hold[0], hold[1]
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	return p, nil
}

// pipe returns a pipe that never blocks its reader.
func pipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	return p[0], p[1], unix.SetNonblock(p[0], true)
}

// release closes the runtime's ends, so that only the process has them.
func (p *plumbing) release() {
	for i, fd := range p.theirs {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		p.theirs[i] = -1
	}
}

// deafen closes the logger's ends.
func (p *plumbing) deafen() {
	for i, fd := range p.listens {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		p.listens[i] = -1
	}
}

func (p *plumbing) close() {
	p.release()
	p.deafen()
	p.closeSocket()
	if p.capture >= 0 && p.capture != p.ours[roleStderr] {
		_ = unix.Close(p.capture)
	}
	for _, fd := range p.ours {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	clear(p.ours)
	p.capture = -1
}

func (p *plumbing) closeSocket() {
	if p.socket != nil {
		_ = p.socket.Close()
		p.socket = nil
	}
}

// complaint is what the runtime wrote before it failed.
func (p *plumbing) complaint() string {
	if p.capture < 0 {
		return ""
	}
	buf := make([]byte, 64<<10)
	n, _ := unix.Read(p.capture, buf)
	return strings.TrimSpace(strings.ToValidUTF8(string(buf[:max(n, 0)]), "?"))
}

// console takes the terminal that the runtime has sent, and keeps its other
// side open too.
func (p *plumbing) console(rows, cols uint16) error {
	_ = p.socket.SetDeadline(time.Now().Add(5 * time.Second))
	sock, err := p.socket.AcceptUnix()
	if err != nil {
		return fmt.Errorf("no terminal from the runtime: %w", err)
	}
	defer sock.Close()
	_ = sock.SetDeadline(time.Now().Add(5 * time.Second))
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := sock.ReadMsgUnix(data, oob)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	fds, err := parseRights(oob[:n])
	if err != nil || len(fds) != 1 {
		closeAll(fds)
		return errors.Join(err, errors.New("the runtime sent no terminal"))
	}
	p.ours[roleConsole] = fds[0]
	if rows > 0 && cols > 0 {
		_ = unix.IoctlSetWinsize(fds[0], unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
	openPeer(p.ours)
	return unix.SetNonblock(fds[0], true)
}

// openPeer opens the other side of a terminal, if there is one.
func openPeer(fds map[role]int) {
	console, ok := fds[roleConsole]
	if !ok {
		return
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(console), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno == 0 {
		fds[rolePeer] = int(fd)
	}
}

// start runs the runtime and makes its process a child.
func (s *server) start(ctx context.Context, l *Launch) (_ *child, err error) {
	slot, err := s.notes.take()
	if err != nil {
		return nil, err
	}
	c := &child{record: record{ID: l.ID, Output: l.Output, Log: l.Log, Slot: slot}, told: make(chan struct{})}
	if l.Streams != nil {
		c.Output = Given
	}
	var p *plumbing
	defer func() {
		if err == nil {
			return
		}
		if c.sink != nil {
			_ = c.sink.log.Close()
		}
		if p != nil {
			s.endLogger(p.ours, true)
			p.close()
		}
		s.notes.release(slot)
	}()
	if p, err = lay(l, s.nulls); err != nil {
		return nil, err
	}
	c.fds = p.ours
	if err := c.open(s.notes, s.log); err != nil {
		return nil, err
	}
	if p.logger != nil {
		if err := s.startLogger(ctx, l, p); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(l.PidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old pid file: %w", err)
	}
	if err := s.runRuntime(ctx, l, p); err != nil {
		return nil, err
	}
	p.release()
	if l.ConsoleSocket != "" {
		if err := p.console(l.Rows, l.Cols); err != nil {
			return nil, err
		}
		p.closeSocket()
		_ = unix.Close(p.capture)
	}
	if c.Pid, err = readPid(l.PidFile); err != nil {
		return nil, err
	}
	if err := s.flow(c); err != nil {
		return nil, err
	}
	s.adopt(c)
	return c, nil
}

// runRuntime runs the command to its end.
func (s *server) runRuntime(ctx context.Context, l *Launch, p *plumbing) error {
	if len(l.Argv) == 0 {
		return errs.New(errs.Invalid, "launch %s: no command", l.ID)
	}
	path, err := exec.LookPath(l.Argv[0])
	if err != nil {
		return &LaunchError{Argv0: l.Argv[0], Code: -1, Text: err.Error()}
	}
	attr := &syscall.ProcAttr{
		Dir: l.Dir, Env: l.Env,
		Files: []uintptr{uintptr(p.theirs[0]), uintptr(p.theirs[1]), uintptr(p.theirs[2])},
		// A runtime without its keeper would make a container that nobody knows.
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	}
	pid, ended, err := s.fork(path, l.Argv, attr)
	if err != nil {
		return &LaunchError{Argv0: l.Argv[0], Code: -1, Text: fmt.Sprintf("run %s: %v", path, err)}
	}
	status, err := p.attend(ctx, l.Argv[0], ended)
	if err != nil {
		s.killRuntime(pid)
		<-ended
		return fmt.Errorf("launch %s: %w", l.ID, err)
	}
	if code := exitCode(status); code != 0 {
		return &LaunchError{Argv0: l.Argv[0], Code: code, Text: p.complaint()}
	}
	return nil
}

const (
	talk     = 1 << 20 // bytes that a runtime may say before it has ended
	attended = 200 * time.Millisecond
)

// attend waits for the runtime to end. Nobody reads what it says before that,
// for it shares the pipe with its container; so the pipe is made to hold a lot,
// and a runtime that fills it is not waited for any longer.
func (p *plumbing) attend(ctx context.Context, argv0 string, ended <-chan unix.WaitStatus) (unix.WaitStatus, error) {
	tick := time.NewTicker(attended)
	defer tick.Stop()
	for asked := false; ; {
		select {
		case status := <-ended:
			return status, nil
		case <-ctx.Done():
			return 0, errs.New(errs.Canceled, "canceled")
		case <-tick.C:
		}
		if p.capture < 0 {
			continue
		}
		_, grown := unix.FcntlInt(uintptr(p.capture), unix.F_SETPIPE_SZ, talk)
		if full(p.theirs[2]) && (grown != nil || asked) {
			begin := p.complaint()
			return 0, &LaunchError{Argv0: argv0, Code: -1, Text: "it said more than a megabyte and did not end: " + begin[:min(len(begin), 1024)]}
		}
		asked = true
	}
}

// full: a write to the pipe would wait.
func full(pipe int) bool {
	fds := []unix.PollFd{{Fd: int32(pipe), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

func readPid(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("pid file %s: %q is no process", path, data)
	}
	return pid, nil
}
