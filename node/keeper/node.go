package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/group"
)

// helloLimit is how long a keeper may take to answer. It serves one node at
// a time, so one that does not answer has another node.
const helloLimit = 5 * time.Second

// Keeper is node's hold on the keeper process.
type Keeper struct {
	config Config
	number atomic.Uint64  // of requests
	reaped sync.WaitGroup // keepers that we started; they are waited for whenever they end

	storing sync.Mutex // one change of the store at a time; taken before mu

	mu        sync.Mutex
	conn      *conn // nil while there is none
	pid       int
	changed   chan struct{} // closed and replaced when conn changes
	pending   map[uint64]chan answer
	processes map[string]*held
	kept      map[string][]int // the store: see Hold
	exits     []Exit           // not delivered yet
	wake      chan struct{}
	leaving   bool // Shutdown was asked for: do not start another
}

// answer is what came for a request; err is that of a lost connection.
type answer struct {
	message
	err error
}

// held is what node keeps of a process, enough to give it to a new keeper.
type held struct {
	record  record
	fds     map[role]int // those without an os.File in process too
	process Process
}

// Open finds the running keeper, or starts one, and takes over duplicates of
// all its descriptors. errs.Conflict: another node has it.
func Open(ctx context.Context, c Config) (*Keeper, error) {
	k := &Keeper{
		config: c, changed: make(chan struct{}), wake: make(chan struct{}, 1),
		pending: map[uint64]chan answer{}, processes: map[string]*held{}, kept: map[string][]int{},
	}
	err := k.connect(ctx)
	for tries := 0; tries < 3 && leftUs(err); tries++ { // one that was told to go: another is started
		err = k.connect(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open keeper: %w", err)
	}
	return k, nil
}

// leftUs says whether a keeper ended before it had answered.
func leftUs(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// Run reads what the keeper says and calls Config.Exited, and replaces a
// keeper that died: the new one gets every descriptor back. All calls wait
// for it. It returns when ctx is done; the keeper and its processes stay.
func (k *Keeper) Run(ctx context.Context) error {
	g := group.New(ctx)
	g.Go("exits", k.deliver)
	g.Go("connection", k.follow)
	return g.Wait()
}

// Close lets go of the keeper and of node's duplicates, after Run.
func (k *Keeper) Close() error {
	k.drop(errs.New(errs.Unavailable, "keeper: closed"))
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.processes {
		h.close()
	}
	clear(k.processes)
	for _, fds := range k.kept {
		closeAll(fds)
	}
	clear(k.kept)
	return nil
}

// Pid is the keeper's process id, 0 while there is none.
func (k *Keeper) Pid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pid
}

// follow reads from the keeper, from one after the other.
func (k *Keeper) follow(ctx context.Context) error {
	for {
		err := k.read(ctx)
		k.drop(errs.New(errs.Unavailable, "the keeper died meanwhile"))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		k.mu.Lock()
		leaving := k.leaving
		k.mu.Unlock()
		if leaving {
			<-ctx.Done()
			return ctx.Err()
		}
		k.config.Log.WarnContext(ctx, "keeper lost; starting another", slog.Any("err", err))
		for pause := 10 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
			if err = k.connect(ctx); err == nil {
				break
			}
			k.config.Log.ErrorContext(ctx, "no keeper", slog.Any("err", err))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
			}
		}
	}
}

// read passes on what arrives until the connection ends.
func (k *Keeper) read(ctx context.Context) error {
	k.mu.Lock()
	c := k.conn
	k.mu.Unlock()
	if c == nil {
		return io.EOF
	}
	defer context.AfterFunc(ctx, func() { _ = c.sock.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		m, fds, err := c.receive()
		if err != nil {
			return err
		}
		if k.event(m) {
			closeAll(fds)
			continue
		}
		if m.Op == opProcess { // known before anybody hears of its end
			if err := k.hold(m.Record, fds); err != nil {
				m = message{Number: m.Number, Op: opFail, Fail: failed(err)}
			}
			fds = nil
		}
		k.mu.Lock()
		waiting := k.pending[m.Number]
		delete(k.pending, m.Number)
		k.mu.Unlock()
		closeAll(fds)
		if waiting != nil {
			waiting <- answer{message: m}
		}
	}
}

// drop gives the connection up and fails who waits for an answer.
func (k *Keeper) drop(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn != nil {
		_ = k.conn.sock.Close()
	}
	k.conn, k.pid = nil, 0
	for n, waiting := range k.pending {
		waiting <- answer{err: err}
		delete(k.pending, n)
	}
}

// connect finds or starts a keeper and makes both sides know the same.
func (k *Keeper) connect(ctx context.Context) error {
	c, err := k.dial(ctx)
	if err != nil {
		return err
	}
	pid, listed, err := k.hello(c)
	if err == nil {
		err = k.giveBack(c, listed)
	}
	if err != nil {
		_ = c.sock.Close()
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conn, k.pid = c, pid
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

func (k *Keeper) dial(ctx context.Context) (*conn, error) {
	addr := &net.UnixAddr{Name: k.config.Socket, Net: "unixpacket"}
	sock, err := net.DialUnix("unixpacket", nil, addr)
	if err != nil {
		if err := k.startKeeper(ctx); err != nil {
			return nil, err
		}
		if sock, err = net.DialUnix("unixpacket", nil, addr); err != nil {
			return nil, errs.New(errs.Unavailable, "the keeper did not start, see %s: %w", k.logPath(), err)
		}
	}
	return newConn(sock), nil
}

// hello reads the keeper's list.
func (k *Keeper) hello(c *conn) (pid int, listed map[string]bool, err error) {
	number := k.number.Add(1)
	if err := c.send(message{Number: number, Op: opHello, Protocol: protocol}); err != nil {
		return 0, nil, err
	}
	_ = c.sock.SetReadDeadline(time.Now().Add(helloLimit))
	defer func() { _ = c.sock.SetReadDeadline(time.Time{}) }()
	listed = map[string]bool{}
	for {
		m, fds, err := c.receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil, errs.New(errs.Conflict, "the keeper does not answer: another node has it")
		}
		if err != nil {
			return 0, nil, err
		}
		switch m.Op {
		case opProcess:
			if err := k.hold(m.Record, fds); err != nil {
				return 0, nil, err
			}
			listed[m.Record.ID] = true
		case opKept:
			k.learnKept(m.ID, fds)
			listed[keptPrefix+m.ID] = true
		case opExit, opLetGo:
			k.event(m)
		case opDone:
			return m.Pid, listed, nil
		case opFail:
			return 0, nil, m.Fail.err()
		}
	}
}

// giveBack hands a new keeper the processes that it does not know.
func (k *Keeper) giveBack(c *conn, listed map[string]bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, h := range k.processes {
		if listed[id] {
			continue
		}
		r, fds := (&child{record: h.record, fds: h.fds}).describe()
		if err := k.giveOne(c, id, message{Op: opAdopt, Record: r}, fds); err != nil {
			return err
		}
	}
	for name, fds := range k.kept {
		if listed[keptPrefix+name] {
			continue
		}
		if err := k.giveOne(c, name, message{Op: keepOp(name), ID: name}, fds); err != nil {
			return err
		}
	}
	return nil
}

// keptPrefix tells names of the store from ids; no id begins so.
const keptPrefix = "/"

// giveOne sends one thing to a new keeper, and waits for its answer. Call it
// with k.mu held.
func (k *Keeper) giveOne(c *conn, what string, request message, fds []int) error {
	request.Number = k.number.Add(1)
	if err := c.send(request, fds...); err != nil {
		return fmt.Errorf("give %s back: %w", what, err)
	}
	for {
		m, fds, err := c.receive()
		if err != nil {
			return fmt.Errorf("give %s back: %w", what, err)
		}
		closeAll(fds)
		switch {
		case m.Op == opExit && m.Exit != nil:
			k.note(*m.Exit)
		case m.Op == opLetGo:
			k.letGo(m.ID)
		}
		if m.Number == request.Number {
			if m.Op == opFail {
				k.config.Log.Error("not taken back", slog.String("what", what), slog.Any("err", m.Fail.err()))
			}
			return nil
		}
	}
}

// hold takes a process into the list.
func (k *Keeper) hold(r *record, fds []int) error {
	if r == nil {
		closeAll(fds)
		return errs.New(errs.Invalid, "a process without a record")
	}
	roles, err := byRole(r.Roles, fds)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.processes[r.ID]; h != nil && h.record.Pid == r.Pid { // a duplicate of what we have
		closeAll(fds)
	} else {
		k.processes[r.ID] = newHeld(*r, roles)
	}
	if r.Exit != nil {
		k.note(*r.Exit)
	}
	return nil
}

func newHeld(r record, fds map[role]int) *held {
	r.Exit = nil // until it is noted
	h := &held{record: r, fds: fds, process: Process{ID: r.ID, Pid: r.Pid, Given: r.Output == Given}}
	file := func(name role) *os.File {
		if fd, ok := fds[name]; ok {
			return os.NewFile(uintptr(fd), r.ID+" "+string(name))
		}
		return nil
	}
	h.process.Pidfd, h.process.Console = file(rolePidfd), file(roleConsole)
	if r.Output != Given { // then it is a client that writes
		h.process.Stdin = file(roleStdin)
	}
	if r.Output == Hold { // else node would wake up whenever a container writes
		h.process.Stdout, h.process.Stderr = file(roleStdout), file(roleStderr)
	}
	return h
}

// closeOne closes one descriptor, by its file if it has one.
func (h *held) closeOne(name role) {
	fd, ok := h.fds[name]
	if !ok {
		return
	}
	delete(h.fds, name)
	p := &h.process
	files := map[role]*os.File{rolePidfd: p.Pidfd, roleStdin: p.Stdin, roleStdout: p.Stdout, roleStderr: p.Stderr, roleConsole: p.Console}
	if f := files[name]; f != nil {
		_ = f.Close()
	} else {
		_ = unix.Close(fd)
	}
}

func (h *held) close() {
	for _, name := range passed {
		h.closeOne(name)
	}
}

// event takes what the keeper tells without having been asked.
func (k *Keeper) event(m message) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case m.Op == opExit && m.Exit != nil:
		k.note(*m.Exit)
	case m.Op == opLetGo:
		k.letGo(m.ID)
	default:
		return false
	}
	return true
}

// letGo closes our duplicates of what the keeper has closed, so that clients
// see the end. Call it with k.mu held.
func (k *Keeper) letGo(id string) {
	h := k.processes[id]
	if h == nil || h.record.Output != Given {
		return
	}
	for _, name := range clients {
		h.closeOne(name)
	}
}

// note queues an exit that is news. Call it with k.mu held.
func (k *Keeper) note(e Exit) {
	h := k.processes[e.ID]
	if h == nil || h.process.Exit != nil || h.process.Pid != e.Pid {
		return
	}
	h.process.Exit, h.record.Exit = &e, &e
	if fd, ok := h.fds[rolePidfd]; ok { // nothing to reap, unless node is pid 1 and the keeper had died
		_ = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil)
	}
	k.exits = append(k.exits, e)
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// deliver calls Config.Exited, apart from follow, so that it may call back.
func (k *Keeper) deliver(ctx context.Context) error {
	for {
		k.mu.Lock()
		exits := k.exits
		k.exits = nil
		k.mu.Unlock()
		for _, e := range exits {
			if k.config.Exited != nil {
				k.config.Exited(e)
			}
		}
		select {
		case <-k.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
