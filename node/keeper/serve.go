package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// ServeConfig is what a keeper process needs.
type ServeConfig struct {
	Socket  string // unix SOCK_SEQPACKET, mode 0600, root only
	PidFile string // also the lock that makes the keeper the only one
	Cgroup  string // moves there in each hierarchy where it can, e.g. "/berth-keeper"; "": stays in node's
	Log     *slog.Logger
	// LoggerLimit is how long a logger may take to be ready; 0 means 10 s.
	LoggerLimit time.Duration
	// Linger is how long a keeper without processes waits for a node, and one
	// with them has clients wait for it; 0 means 10 s.
	Linger time.Duration
}

func (c *ServeConfig) linger() time.Duration { return cmp.Or(c.Linger, 10*time.Second) }

// server is the keeper process.
//
// Locks: launches, then mu, then a sink's, then conn's.
type server struct {
	config ServeConfig
	log    *slog.Logger
	notes  *notes
	spaces *workspaces
	nulls  *nulls
	socket *net.UnixListener
	lock   *os.File
	oom    string // what processes start with, not the keeper's own

	work     sync.WaitGroup // streams, watchers, launches: they end with the process
	launches sync.RWMutex   // held for reading by each launch, for writing by an upgrade

	mu        sync.Mutex
	processes map[string]*child // by id; nil while it starts
	children  map[int]*child    // that we must reap
	runtimes  map[int]chan unix.WaitStatus
	strays    map[int]end
	kept      map[string][]int // the store: see Keeper.Hold
	unserved  *time.Timer      // until sockets are closed; nil while a node serves them
	launching int
	cancel    map[ticket]context.CancelFunc // of launches
	node      *conn
	trim      *time.Timer
}

// ticket is a request: numbers are each node's own.
type ticket struct {
	node   *conn
	number uint64
}

// Serve is the keeper process (`berth keeper`). It returns when told to shut
// down, or when it has no process and ctx is done or no node has come for a
// while; never while a process lives. It takes over the whole Go process:
// signals, child processes, memory limits. One node is served at a time; a
// second one waits until the first has gone.
func Serve(ctx context.Context, c ServeConfig) error {
	s := &server{
		config: c, log: c.Log,
		spaces:    newWorkspaces(min(4, runtime.GOMAXPROCS(0))),
		nulls:     newNulls(),
		processes: map[string]*child{}, children: map[int]*child{}, kept: map[string][]int{},
		runtimes: map[int]chan unix.WaitStatus{}, strays: map[int]end{},
		cancel: map[ticket]context.CancelFunc{},
	}
	debug.SetGCPercent(20) // a keeper's heap is small, and there is time
	node, err := s.begin()
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	defer s.end()
	signals := s.protect()
	defer signal.Stop(signals)
	s.work.Go(func() {
		for sig := range signals {
			if sig == unix.SIGCHLD {
				s.reap()
			}
		}
	})
	s.reap() // whoever ended while an upgrade was under way
	stop := context.AfterFunc(ctx, func() { _ = s.socket.SetDeadline(time.Now()) })
	defer stop()
	announce()
	trim()
	return s.serve(ctx, node)
}

// begin opens what the keeper works with, or takes it over from the program
// that this process ran before; then there is a node already.
func (s *server) begin() (node *conn, err error) {
	past, err := inherit()
	if err != nil {
		return nil, err
	}
	if past != nil {
		s.lock = os.NewFile(uintptr(past.Lock), s.config.PidFile)
	} else if s.lock, err = lockPidFile(s.config.PidFile); err != nil {
		return nil, err
	}
	if s.notes, err = openNotes(s.config.Socket + ".notes"); err != nil {
		return nil, err
	}
	if past != nil {
		return s.restore(past)
	}
	_ = os.Remove(s.config.Socket)
	old := unix.Umask(0o177)
	s.socket, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.config.Socket, Net: "unixpacket"})
	unix.Umask(old)
	return nil, err
}

// end removes what would mislead the next keeper.
func (s *server) end() {
	s.nulls.close()
	_ = s.socket.Close()
	_ = os.Remove(s.config.Socket + ".notes")
	_ = os.Remove(s.config.PidFile)
	_ = s.lock.Close()
}

// announce tells the node that started us that the socket is there.
func announce() {
	if fd, err := strconv.Atoi(os.Getenv(readyEnv)); err == nil {
		_ = unix.Close(fd)
	}
	_ = os.Unsetenv(readyEnv)
}

func lockPidFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errs.New(errs.Conflict, "%s: another keeper runs", path), f.Close())
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, err
}

// serve talks to one node after the other.
func (s *server) serve(ctx context.Context, node *conn) error {
	for {
		if node != nil {
			if done := s.attend(ctx, node); done {
				return nil
			}
		}
		unneeded := s.isUnneeded()
		if unneeded && ctx.Err() != nil {
			return s.abandon()
		}
		var limit time.Time
		if unneeded {
			limit = time.Now().Add(s.config.linger())
		}
		_ = s.socket.SetDeadline(limit)
		var err error
		node, err = s.accept()
		late := errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case late && unneeded:
			s.log.InfoContext(ctx, "no process and no node: leaving")
			return s.abandon()
		case err != nil && !late:
			return err
		}
	}
}

func (s *server) isUnneeded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.processes) == 0
}

// abandon has nobody wait for a node that a keeper would not hear of.
func (s *server) abandon() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeSockets()
	return nil
}

// accept returns nil for a peer that has no business here.
func (s *server) accept() (*conn, error) {
	sock, err := s.socket.AcceptUnix()
	if err != nil {
		return nil, err
	}
	raw, err := sock.SyscallConn()
	var cred *unix.Ucred
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		}), err)
	}
	if err != nil || cred == nil || cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		s.log.Warn("stranger turned away", slog.Any("err", err))
		_ = sock.Close()
		return nil, nil
	}
	return newConn(sock), nil
}

// attend serves one node until it goes away; done means that the keeper
// shall go too.
func (s *server) attend(ctx context.Context, node *conn) (done bool) {
	s.mu.Lock()
	s.node = node
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.node = nil
		s.leaveSockets()
		s.mu.Unlock()
		_ = node.sock.Close()
	}()
	for {
		m, fds, err := node.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.log.WarnContext(ctx, "node lost", slog.Any("err", err))
			}
			return false
		}
		done, err = s.handle(ctx, node, m, fds)
		answer := message{Number: m.Number, Op: opDone, Pid: os.Getpid(), Protocol: protocol}
		if err != nil {
			answer.Op, answer.Fail = opFail, failed(err)
		}
		if m.Op != opLaunch && m.Op != opCancel {
			_ = node.send(answer)
		}
		if done && err == nil {
			return true
		}
	}
}

// handle does one request. Launches answer by themselves, later.
func (s *server) handle(ctx context.Context, node *conn, m message, fds []int) (done bool, err error) {
	if m.Op != opAdopt && m.Op != opKeep && m.Op != opListen {
		closeAll(fds)
	}
	switch m.Op {
	case opHello:
		s.mu.Lock()
		defer s.mu.Unlock()
		if m.Protocol < 2 { // a node that would find another one at its socket
			s.closeSockets()
		}
		return false, s.list(node, m.Number)
	case opLaunch:
		if m.Launch == nil {
			return false, node.send(message{Number: m.Number, Op: opFail, Fail: failed(errs.Invalid)})
		}
		s.goLaunch(ctx, ticket{node, m.Number}, *m.Launch)
		return false, nil
	case opCancel:
		s.mu.Lock()
		defer s.mu.Unlock()
		if stop := s.cancel[ticket{node, m.Number}]; stop != nil {
			stop()
		}
		return false, nil
	case opAdopt:
		return false, s.takeOver(m.Record, fds)
	case opKeep:
		return false, s.keep(m.ID, fds)
	case opListen:
		return false, s.keepSocket(m.ID, fds)
	case opDrop:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unkeep(m.ID)
		return false, nil
	case opCloseStdin:
		return false, s.closeStdin(m.ID)
	case opCloseOut:
		return false, s.closeOutput(m.ID)
	case opForget:
		return false, s.forget(m.ID)
	case opReopen:
		return false, s.reopen(m.ID)
	case opUpgrade:
		return false, s.upgrade(node, m)
	case opShutdown:
		return true, s.mayLeave(m.Force)
	}
	return false, errs.New(errs.Unsupported, "no such request: %s", m.Op)
}

// list sends every process with its descriptors. Call it with s.mu held.
func (s *server) list(node *conn, number uint64) error {
	for _, c := range s.processes {
		if c == nil {
			continue
		}
		r, fds := c.describe()
		if err := node.send(message{Number: number, Op: opProcess, Record: r}, fds...); err != nil {
			return err
		}
	}
	for name, fds := range s.kept {
		if err := node.send(message{Number: number, Op: opKept, ID: name}, fds...); err != nil {
			return err
		}
	}
	return nil
}

// goLaunch starts a launch in the background. Only opCancel cancels it: a
// node that dies finds the process when it comes back.
func (s *server) goLaunch(ctx context.Context, t ticket, l Launch) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.mu.Lock()
	_, exists := s.processes[l.ID]
	if !exists {
		s.processes[l.ID] = nil
	}
	s.cancel[t] = cancel
	s.mu.Unlock()
	s.work.Go(func() {
		defer cancel()
		var c *child
		err := errs.New(errs.Exists, "process %s exists", l.ID)
		if !exists {
			c, err = s.launch(ctx, &l)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.cancel, t)
		if err != nil {
			_ = t.node.send(message{Number: t.number, Op: opFail, Fail: failed(err)})
			return
		}
		r, fds := c.describe()
		if s.node != nil && s.node != t.node { // who asked died meanwhile, and this one does not know of it
			t = ticket{s.node, 0}
		}
		_ = t.node.send(message{Number: t.number, Op: opProcess, Record: r}, fds...)
		close(c.told)
	})
}

// launch brackets start: no upgrade meanwhile, and strays are kept.
func (s *server) launch(ctx context.Context, l *Launch) (*child, error) {
	s.launches.RLock()
	defer s.launches.RUnlock()
	s.mu.Lock()
	s.launching++
	s.mu.Unlock()
	c, err := s.start(ctx, l)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.launching--; s.launching == 0 {
		clear(s.strays)
		s.trimSoon()
	}
	if err != nil {
		delete(s.processes, l.ID)
	}
	return c, err
}

// tell sends an event to the node, if there is one. Call it with s.mu held.
func (s *server) tell(m message) {
	if s.node != nil {
		_ = s.node.send(m)
	}
}
