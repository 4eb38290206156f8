package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Names in the environment of a keeper.
const (
	readyEnv    = "BERTH_KEEPER_READY"    // descriptor to close when the socket is there
	handoverEnv = "BERTH_KEEPER_HANDOVER" // descriptor of a handover
)

// takeOver makes a process of an earlier keeper ours, as node asks.
func (s *server) takeOver(r *record, fds []int) error {
	if r == nil {
		closeAll(fds)
		return errs.New(errs.Invalid, "adopt: no process")
	}
	roles, err := byRole(r.Roles, fds)
	if err != nil {
		return err
	}
	s.mu.Lock()
	_, exists := s.processes[r.ID]
	s.mu.Unlock()
	if exists {
		closeAll(fds)
		return errs.New(errs.Exists, "process %s exists", r.ID)
	}
	_, err = s.resume(*r, roles)
	return err
}

// resume goes on where a keeper left off: it finishes what was in the holding
// pipe, moves output again, and watches for the end.
func (s *server) resume(r record, roles map[role]int) (*child, error) {
	own := r.Own
	r.Own, r.Roles = false, nil
	c := &child{record: r, fds: roles, told: make(chan struct{})}
	close(c.told)
	if err := s.notes.claim(c.Slot); err != nil {
		closeAll(values(roles))
		return nil, err
	}
	if _, there := roles[roleHoldIn]; c.Output == ToLog && !there {
		c.Output = Discard // without its holding pipe nothing can be moved safely
	}
	if err := c.open(s.notes, s.log); err != nil {
		s.log.Error("log cannot be opened; output is lost", slog.String("id", c.ID), slog.Any("err", err))
	}
	if c.sink != nil {
		if err := s.recoverSink(c.sink); err != nil {
			s.log.Error("held output is lost", slog.String("id", c.ID), slog.Any("err", err))
		}
	}
	if c.Exit == nil {
		openPeer(c.fds)
	}
	if err := s.flow(c); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes[c.ID] = c
	_, watchable := c.fds[rolePidfd]
	switch {
	case c.Exit != nil:
		s.work.Go(func() { s.leave(c) })
	case own:
		s.children[c.Pid] = c
	case watchable:
		s.watch(c)
	default: // it had ended, but how was known to the dead keeper only
		s.work.Go(func() { s.finish(c, Exit{At: time.Now()}) })
	}
	return c, nil
}

func (s *server) recoverSink(k *sink) error {
	w, err := s.spaces.borrow()
	if err != nil {
		return err
	}
	defer s.spaces.giveBack(w)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.recover(w)
}

func values(m map[role]int) []int {
	var fds []int
	for _, fd := range m {
		fds = append(fds, fd)
	}
	return fds
}

// handover is what a keeper leaves to the program it becomes. Descriptors
// keep their numbers.
type handover struct {
	Lock, Socket, Node int
	Number             uint64 // of node's request, to be answered by the new program
	Processes          []inherited
	Kept               map[string][]int `json:",omitempty"`
}

type inherited struct {
	Record record
	Fds    []int
}

// upgrade replaces the program of this process: same pid, so the same
// children. Whatever moved at that moment is finished by the next program
// like that of a keeper that was killed.
func (s *server) upgrade(node *conn, m message) error {
	if len(m.Command) == 0 {
		return errs.New(errs.Invalid, "upgrade: no command")
	}
	path, err := exec.LookPath(m.Command[0])
	if err != nil {
		return errs.New(errs.NotFound, "upgrade: %w", err)
	}
	s.launches.Lock()
	defer s.launches.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	past := handover{Number: m.Number, Lock: fdOf(s.lock), Socket: fdOf(s.socket), Node: fdOf(node.sock)}
	keep := []int{past.Lock, past.Socket, past.Node}
	for _, c := range s.processes {
		r, fds := c.describe()
		r.Own = s.children[c.Pid] == c
		past.Processes = append(past.Processes, inherited{*r, fds})
		keep = append(keep, fds...)
		if c.sink != nil { // not in the middle of a terminal's output
			c.sink.mu.Lock()
			defer c.sink.mu.Unlock()
		}
	}
	past.Kept = s.kept
	for _, fds := range s.kept {
		keep = append(keep, fds...)
	}
	memory, err := past.write()
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer unix.Close(memory)
	keep = append(keep, memory)
	inheritable(keep, true)
	err = unix.Exec(path, m.Command, append(os.Environ(), handoverEnv+"="+strconv.Itoa(memory)))
	inheritable(keep, false)
	return fmt.Errorf("upgrade: execute %s: %w", path, err)
}

func (h *handover) write() (int, error) {
	data, err := json.Marshal(h)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		data = data[n:]
	}
	_, err = unix.Seek(fd, 0, io.SeekStart)
	return fd, err
}

// inherit returns what an earlier program of this process left, if any.
func inherit() (*handover, error) {
	value, ok := os.LookupEnv(handoverEnv)
	if !ok {
		return nil, nil
	}
	_ = os.Unsetenv(handoverEnv)
	fd, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", handoverEnv, err)
	}
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	var h handover
	if err := json.NewDecoder(f).Decode(&h); err != nil {
		return nil, fmt.Errorf("read handover: %w", err)
	}
	return &h, nil
}

// restore makes everything of the earlier program ours.
func (s *server) restore(past *handover) (*conn, error) {
	unix.CloseOnExec(past.Lock)
	socketFile, nodeFile := os.NewFile(uintptr(past.Socket), "socket"), os.NewFile(uintptr(past.Node), "node")
	l, err1 := net.FileListener(socketFile)
	n, err2 := net.FileConn(nodeFile)
	if err := errors.Join(err1, err2, socketFile.Close(), nodeFile.Close()); err != nil {
		return nil, fmt.Errorf("inherit sockets: %w", err)
	}
	s.socket, _ = l.(*net.UnixListener)
	for name, fds := range past.Kept {
		inheritable(fds, false)
		s.kept[name] = fds
	}
	for _, p := range past.Processes {
		inheritable(p.Fds, false)
		roles, err := byRole(p.Record.Roles, p.Fds)
		if err == nil {
			_, err = s.resume(p.Record, roles)
		}
		if err != nil {
			s.log.Error("process lost in upgrade", slog.String("id", p.Record.ID), slog.Any("err", err))
		}
	}
	sock, _ := n.(*net.UnixConn)
	node := newConn(sock)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Exits that were not sent yet; node ignores those that it knows.
	for _, c := range s.processes {
		if c.Exit == nil {
			continue
		}
		_ = node.send(message{Op: opExit, Exit: c.Exit})
		if _, held := c.fds[roleOut]; c.Output == Given && !held {
			_ = node.send(message{Op: opLetGo, ID: c.ID})
		}
	}
	s.node = node
	return node, node.send(message{Number: past.Number, Op: opDone, Pid: os.Getpid(), Protocol: protocol})
}

func inheritable(fds []int, yes bool) {
	flag := unix.FD_CLOEXEC
	if yes {
		flag = 0
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	}
}
