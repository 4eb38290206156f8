package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Launch runs the runtime command to its end and adopts the process that it
// leaves behind. While a keeper is being replaced it waits. A runtime that
// fails is a *LaunchError. With any error something of the container may be
// left, which the runtime's own delete command removes; with errs.Unavailable
// the keeper died, and so did the runtime command.
func (k *Keeper) Launch(ctx context.Context, l Launch) (*Process, error) {
	if l.RuntimeLog != "" {
		_ = os.Remove(l.RuntimeLog)
	}
	_, err := k.ask(ctx, message{Op: opLaunch, Launch: &l}, false)
	if err != nil {
		return nil, explain(err, l.RuntimeLog)
	}
	p, ok := k.Process(l.ID)
	if !ok {
		return nil, errs.New(errs.NotFound, "process %s was forgotten", l.ID)
	}
	p.Exit = nil // always by Config.Exited
	return p, nil
}

// explain replaces what the runtime wrote to the container's standard error
// by what it wrote to its log.
func explain(err error, path string) error {
	var le *LaunchError
	if path == "" || !errors.As(err, &le) {
		return err
	}
	data, readErr := os.ReadFile(path)
	if text := runtimeError(data); readErr == nil && text != "" {
		le.Text = text
	}
	return err
}

// runtimeError returns the last complaint of a runtime's log: JSON lines, or
// anything else as it is.
func runtimeError(data []byte) string {
	lines := bytes.Split(bytes.TrimSpace(data), []byte{'\n'})
	for _, line := range slices.Backward(lines) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) != nil || entry.Msg == "" {
			break
		}
		if entry.Level != "info" && entry.Level != "debug" && entry.Level != "warning" {
			return entry.Msg
		}
	}
	last := lines[len(lines)-1]
	if len(last) > 0 && last[0] == '{' {
		return ""
	}
	return strings.ToValidUTF8(string(last[:min(len(last), 4096)]), "?")
}

// Processes returns every process that was not forgotten.
func (k *Keeper) Processes() []*Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]*Process, 0, len(k.processes))
	for _, h := range k.processes {
		p := h.process
		list = append(list, &p)
	}
	return list
}

// Process returns one process as it is now.
func (k *Keeper) Process(id string) (*Process, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.processes[id]
	if h == nil {
		return nil, false
	}
	p := h.process
	return &p, true
}

// CloseStdin closes the write end in the keeper and in node, so that the
// process reads its end.
func (k *Keeper) CloseStdin(ctx context.Context, id string) error {
	k.mu.Lock()
	if h := k.processes[id]; h != nil {
		h.closeOne(roleStdin)
		h.process.Stdin = nil
	}
	k.mu.Unlock()
	_, err := k.ask(ctx, message{Op: opCloseStdin, ID: id}, true)
	return err
}

// CloseOutput closes the read ends of a process whose Output is Hold, in the
// keeper and in node: nobody will read any more, and its next write tells it so.
func (k *Keeper) CloseOutput(ctx context.Context, id string) error {
	k.mu.Lock()
	if h := k.processes[id]; h != nil && h.record.Output == Hold {
		h.closeOne(roleStdout)
		h.closeOne(roleStderr)
		h.process.Stdout, h.process.Stderr = nil, nil
	}
	k.mu.Unlock()
	_, err := k.ask(ctx, message{Op: opCloseOut, ID: id}, true)
	return err
}

// Forget drops an ended process and its descriptors. errs.Conflict while it
// runs; an unknown id is no error.
func (k *Keeper) Forget(ctx context.Context, id string) error {
	_, err := k.ask(ctx, message{Op: opForget, ID: id}, true)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.processes[id]; h != nil {
		h.close()
		delete(k.processes, id)
	}
	return nil
}

// ReopenLog makes the keeper open the log anew by its path, after somebody
// has renamed the file.
func (k *Keeper) ReopenLog(ctx context.Context, id string) error {
	_, err := k.ask(ctx, message{Op: opReopen, ID: id}, true)
	return err
}

// Signal sends sig by pidfd: never to a stranger with a recycled pid.
// errs.NotFound when the process is not known or has ended.
func (k *Keeper) Signal(id string, sig unix.Signal) error {
	return k.signal(id, func(_, pidfd int) error { return unix.PidfdSendSignal(pidfd, sig, nil, 0) })
}

// SignalGroup is Signal for all of the process's group, so for what it has
// started too. Each launch has a group of its own, be it that the runtime makes
// the process the leader of another one.
func (k *Keeper) SignalGroup(id string, sig unix.Signal) error {
	keeper := k.Pid()
	return k.signal(id, func(pid, pidfd int) error {
		group, err := unix.Getpgid(pid)
		ours, _ := unix.Getpgid(keeper)
		if err != nil || group <= 1 || group == unix.Getpgrp() || group == ours {
			return unix.PidfdSendSignal(pidfd, sig, nil, 0)
		}
		return unix.Kill(-group, sig) // its number is not given away while the process is in it
	})
}

func (k *Keeper) signal(id string, send func(pid, pidfd int) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	gone := errs.New(errs.NotFound, "no process %s runs", id)
	h := k.processes[id]
	if h == nil || h.process.Exit != nil { // perhaps nobody has reaped it yet
		return gone
	}
	fd, ok := h.fds[rolePidfd]
	if !ok {
		return gone
	}
	// One that has ended and that nobody has reaped yet takes any signal.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err == nil && n == 1 { //nolint:gosec // a descriptor is small
		return gone
	}
	err := send(h.process.Pid, fd)
	if errors.Is(err, unix.ESRCH) {
		return gone
	}
	return err
}

// Upgrade makes the keeper execute Config.Command in place: same pid, same
// children, same descriptors. Output goes on, and so does this connection.
func (k *Keeper) Upgrade(ctx context.Context) error {
	_, err := k.ask(ctx, message{Op: opUpgrade, Command: k.config.Command}, false)
	return err
}

// Outdated says whether the keeper runs another program file than
// Config.Command names now.
func (k *Keeper) Outdated() (bool, error) {
	path, err := exec.LookPath(k.config.Command[0])
	if err != nil {
		return false, err
	}
	ours, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	theirs, err := os.Stat("/proc/" + strconv.Itoa(k.Pid()) + "/exe")
	if err != nil {
		return false, fmt.Errorf("keeper's program: %w", err)
	}
	return !os.SameFile(ours, theirs), nil
}

// Shutdown ends the keeper. errs.Conflict while processes run, unless force.
func (k *Keeper) Shutdown(ctx context.Context, force bool) error {
	k.mu.Lock()
	k.leaving = true
	k.mu.Unlock()
	_, err := k.ask(ctx, message{Op: opShutdown, Force: force}, false)
	if errors.Is(err, errs.Unavailable) { // it went with its answer, for another request was on its way
		return nil
	}
	if err != nil {
		k.mu.Lock()
		k.leaving = false
		k.mu.Unlock()
	}
	return err
}

// ask sends a request and waits for its answer. With again it is repeated
// when the keeper dies over it.
func (k *Keeper) ask(ctx context.Context, m message, again bool) (message, error) {
	for {
		c, err := k.connection(ctx)
		if err != nil {
			return message{}, err
		}
		waiting := make(chan answer, 1)
		m.Number = k.number.Add(1)
		k.mu.Lock()
		if k.conn != c {
			k.mu.Unlock()
			continue
		}
		k.pending[m.Number] = waiting
		k.mu.Unlock()
		if err := c.send(m, m.files...); err != nil {
			k.mu.Lock()
			delete(k.pending, m.Number)
			k.mu.Unlock()
			if errors.Is(err, errs.Invalid) {
				return message{}, err
			}
			_ = c.sock.Close() // so that Run notices
			k.settled(ctx, c)
			continue
		}
		a := k.wait(ctx, c, m, waiting)
		switch {
		case a.err != nil && again && errors.Is(a.err, errs.Unavailable):
			continue
		case a.err != nil:
			return message{}, a.err
		case a.Op == opFail:
			return message{}, a.Fail.err()
		}
		return a.message, nil
	}
}

// wait waits for the answer. A canceled launch is still waited for, because
// only the keeper knows whether there is a process now; it kills the runtime.
func (k *Keeper) wait(ctx context.Context, c *conn, m message, waiting chan answer) answer {
	select {
	case a := <-waiting:
		return a
	case <-ctx.Done():
	}
	if m.Op == opLaunch && c.send(message{Number: m.Number, Op: opCancel}) == nil {
		return <-waiting
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pending, m.Number)
	return answer{err: ctx.Err()}
}

// connection waits for one.
func (k *Keeper) connection(ctx context.Context) (*conn, error) {
	for {
		k.mu.Lock()
		c, changed := k.conn, k.changed
		leaving := k.leaving && c == nil
		k.mu.Unlock()
		switch {
		case leaving:
			return nil, errs.New(errs.Unavailable, "the keeper was shut down")
		case c != nil:
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// settled waits until c is no longer the connection.
func (k *Keeper) settled(ctx context.Context, c *conn) {
	for {
		k.mu.Lock()
		same, changed := k.conn == c, k.changed
		k.mu.Unlock()
		if !same {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (k *Keeper) logPath() string {
	return strings.TrimSuffix(k.config.PidFile, filepath.Ext(k.config.PidFile)) + ".log"
}

// startKeeper runs Config.Command and waits until it listens, or is gone.
func (k *Keeper) startKeeper(ctx context.Context) error {
	path, err := exec.LookPath(k.config.Command[0])
	if err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	// Its own file: node's standard error may close long before the keeper ends.
	log, err := os.OpenFile(k.logPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	defer null.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	defer ready.Close()
	process, err := os.StartProcess(path, k.config.Command, &os.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), readyEnv+"=3", "GOGC=20"),
		Files: []*os.File{null, log, log, theirs},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	_ = theirs.Close()
	if err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	k.reaped.Go(func() { _, _ = process.Wait() })
	defer context.AfterFunc(ctx, func() { _ = ready.Close() })()
	_, _ = ready.Read(make([]byte, 1)) // ends when the keeper closes it
	return ctx.Err()
}
