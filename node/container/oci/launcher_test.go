package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/keeper"
)

// launcher is a keeper within the test's own process: a subreaper that runs
// the command, adopts what it leaves behind and waits for it.
type launcher struct {
	t  testing.TB
	mu sync.Mutex
	// kill, when set, is asked for the moment to kill the runtime command.
	kill      func(pid int) bool
	processes map[string]*child
	waiters   sync.WaitGroup
}

type child struct {
	keeper.Process
	streams *keeper.Streams
	output  *bytes.Buffer // of a container: what would go to its log
	ended   chan struct{}
	read    chan struct{} // closed when nobody can write to output any more
}

func newLauncher(t testing.TB) *launcher {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	l := &launcher{t: t, processes: map[string]*child{}}
	t.Cleanup(l.waiters.Wait)
	return l
}

func (l *launcher) Launch(ctx context.Context, launch keeper.Launch) (*keeper.Process, error) {
	c := &child{Process: keeper.Process{ID: launch.ID, Given: launch.Streams != nil}, streams: launch.Streams, output: &bytes.Buffer{}, ended: make(chan struct{})}
	cmd := exec.CommandContext(ctx, launch.Argv[0], launch.Argv[1:]...)
	cmd.Env, cmd.Dir = launch.Env, launch.Dir
	var theirs []*os.File
	pipe := func(out bool) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			l.t.Fatal(err)
		}
		if out {
			r, w = w, r
		}
		theirs = append(theirs, r)
		return w
	}
	if launch.Stdin {
		c.Stdin = pipe(false)
		cmd.Stdin = theirs[0]
	}
	var console chan *os.File
	switch {
	case launch.ConsoleSocket != "":
		console = l.listen(launch.ConsoleSocket)
	case launch.Streams != nil: // only kept
	case launch.Output == keeper.Hold:
		c.Stdout, c.Stderr = pipe(true), pipe(true)
		cmd.Stdout, cmd.Stderr = theirs[len(theirs)-2], theirs[len(theirs)-1]
	case launch.Output == keeper.ToLog:
		r := pipe(true)
		cmd.Stdout, cmd.Stderr = theirs[len(theirs)-1], theirs[len(theirs)-1]
		c.read = make(chan struct{})
		l.waiters.Go(func() {
			defer close(c.read)
			buf := make([]byte, 4096)
			for {
				n, err := r.Read(buf)
				l.mu.Lock()
				c.output.Write(buf[:n])
				l.mu.Unlock()
				if err != nil {
					r.Close()
					return
				}
			}
		})
	}
	err := l.runCommand(cmd)
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		text, _ := os.ReadFile(launch.RuntimeLog)
		return nil, &keeper.LaunchError{Argv0: launch.Argv[0], Code: cmd.ProcessState.ExitCode(), Text: string(text)}
	}
	if console != nil {
		c.Console = <-console
	}
	data, err := os.ReadFile(launch.PidFile)
	if err != nil {
		return nil, err
	}
	c.Pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(c.Pid, 0)
	if err != nil {
		return nil, err
	}
	c.Pidfd = os.NewFile(uintptr(fd), "pidfd")
	l.mu.Lock()
	l.processes[launch.ID] = c
	l.mu.Unlock()
	l.waiters.Go(func() { l.wait(c) })
	return &c.Process, nil
}

func (l *launcher) runCommand(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	if l.kill != nil && l.kill(cmd.Process.Pid) {
		_ = cmd.Process.Kill()
	}
	err := cmd.Wait()
	if err != nil {
		l.reapStrangers()
	}
	return err
}

// reapStrangers reaps what a failed command left to us: the first process of
// a container cannot end while others of its namespace wait to be reaped.
func (l *launcher) reapStrangers() { l.reap(anybody) }

// reapStrays takes runtimes' programs that have ended in a container and were
// left to us: its first process does not end before.
func (l *launcher) reapStrays() { l.reap(stray) }

// anybody is any process's status; stray that of a runtime's program that has
// ended, in a namespace of its own; those that we have started are in ours.
var (
	anybody = regexp.MustCompile(``)
	stray   = regexp.MustCompile(`(?s)^Name:\t(crun|runc).*\nState:\tZ.*\nNSpid:\t\d+\t`)
)

// strangers are children of ours that live and that no launch gave us.
func (l *launcher) strangers() []int {
	var pids []int
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(data)) {
			if pid, _ := strconv.Atoi(field); !l.owns(pid) && unix.Kill(pid, 0) == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// reap takes the strangers whose status is such.
func (l *launcher) reap(status *regexp.Regexp) {
	for _, pid := range l.strangers() {
		if is, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); status.Match(is) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// reapNamed reaps orphans of that name until the test ends, as a keeper reaps
// all: runsc waits until its gofer is gone for good.
func (l *launcher) reapNamed(name string) {
	named := regexp.MustCompile(`^Name:\t` + regexp.QuoteMeta(name) + `\n`)
	stop := make(chan struct{})
	l.t.Cleanup(func() { close(stop) })
	l.waiters.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				l.reap(named)
			}
		}
	})
}

func (l *launcher) owns(pid int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.processes {
		if c.Pid == pid {
			return true
		}
	}
	return false
}

func (l *launcher) wait(c *child) {
	var status unix.WaitStatus
	// The one who forked it may still be about to end, and to leave it to us.
	for ready := 0; ready <= 0; { // a signal may end the waiting
		ready, _ = unix.Poll([]unix.PollFd{{Fd: int32(c.Pidfd.Fd()), Events: unix.POLLIN}}, 100)
		l.reapStrays()
	}
	for {
		_, err := unix.Wait4(c.Pid, &status, 0, nil)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECHILD) {
			break
		}
	}
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	l.mu.Lock()
	c.Exit = &keeper.Exit{ID: c.ID, Pid: c.Pid, Code: code, Known: true, At: time.Now()}
	l.mu.Unlock()
	close(c.ended)
}

// listen receives a terminal from a runtime.
func (l *launcher) listen(path string) chan *os.File {
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		l.t.Fatal(err)
	}
	got := make(chan *os.File, 1)
	l.waiters.Go(func() {
		defer socket.Close()
		_ = socket.SetDeadline(time.Now().Add(time.Minute))
		conn, err := socket.AcceptUnix()
		if err != nil {
			got <- nil
			return
		}
		defer conn.Close()
		oob := make([]byte, 64)
		_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 4096), oob)
		if err != nil {
			got <- nil
			return
		}
		messages, _ := unix.ParseSocketControlMessage(oob[:n])
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) == 0 {
			got <- nil
			return
		}
		_ = unix.SetNonblock(fds[0], true)
		got <- os.NewFile(uintptr(fds[0]), "console")
	})
	return got
}

func (l *launcher) Process(id string) (*keeper.Process, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, found := l.processes[id]
	if !found {
		return nil, false
	}
	p := c.Process // as the keeper gives it: how it was at this moment
	return &p, true
}

func (l *launcher) Signal(id string, sig syscall.Signal) error {
	l.mu.Lock()
	c, found := l.processes[id]
	ended := found && c.Exit != nil
	l.mu.Unlock()
	if !found || ended {
		return errs.New(errs.NotFound, "no process %s", id)
	}
	if err := unix.PidfdSendSignal(int(c.Pidfd.Fd()), sig, nil, 0); err != nil {
		return errs.New(errs.NotFound, "signal: %w", err)
	}
	return nil
}

func (*launcher) CloseOutput(context.Context, string) error { return nil }

func (l *launcher) CloseStdin(_ context.Context, id string) error {
	l.mu.Lock()
	c, found := l.processes[id]
	l.mu.Unlock()
	if !found {
		return fmt.Errorf("no process %s", id)
	}
	return c.Stdin.Close()
}

// exit waits for the end of a process and gives its code and output.
func (l *launcher) exit(id string) (int, string) {
	l.t.Helper()
	l.mu.Lock()
	c := l.processes[id]
	l.mu.Unlock()
	if c == nil {
		l.t.Fatalf("no process %s", id)
	}
	select {
	case <-c.ended:
	case <-time.After(time.Minute):
		l.t.Fatalf("process %s (%d) does not end", id, c.Pid)
	}
	if c.read != nil {
		select {
		case <-c.read:
		case <-time.After(time.Second): // something that it left behind holds the pipe
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return c.Exit.Code, c.output.String()
}
