package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/snapshot"
)

// readyEnv names the descriptor that the process closes once it listens.
const readyEnv = "BERTH_LAZY_READY"

// Serve is the process. It returns when ctx is done; or, after node has told
// it to retire, when no mount needs its tree any more. errs.Conflict: there is
// another such process.
func Serve(ctx context.Context, c ServeConfig) (err error) {
	c.Deadline = cmp.Or(c.Deadline, Deadline)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGINT) // the terminal node runs on is not ours
	claim, err := claimPid(c.PidFile)
	if err != nil {
		return err
	}
	defer claim.Close()
	folder, err := unix.Open(c.Objects, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: c.Objects, Err: err}
	}
	defer unix.Close(folder)
	b := newBodies(folder, c.Deadline, c.Log)
	device, mount, err := mountFUSE()
	if err != nil {
		return err
	}
	files, err := serveFiles(device, b, c.Log)
	if err != nil {
		return fmt.Errorf("serve FUSE: %w", errors.Join(err, unix.Close(mount)))
	}
	s := &server{config: c, bodies: b, mount: mount, claim: claim, alone: time.Now()}
	s.ended, s.end = context.WithCancel(ctx)
	defer s.end()
	s.work.Go(func() { files.Serve(); s.end() })
	s.work.Go(s.watchNode)
	err = s.listen()
	if err == nil {
		s.tellReady()
		<-s.ended.Done()
	}
	s.close()
	return err // what still waits for files gets errors: the device closes with the process
}

type server struct {
	config ServeConfig
	bodies *bodies
	claim  *os.File
	ended  context.Context //nolint:containedctx // done when the process is to end
	end    context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	mount    int // -1 when retired
	listener *net.UnixListener
	node     *conn
	alone    time.Time // since when there is no node
}

func claimPid(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errs.New(errs.Conflict, "another process holds %s", path)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s *server) listen() error {
	_ = os.Remove(s.config.Socket) // we hold the claim, so nobody listens there
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.config.Socket, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(s.config.Socket, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	s.listener = l
	s.work.Go(func() {
		for {
			sock, err := l.AcceptUnix()
			if err != nil {
				return
			}
			s.talk(newConn(sock))
		}
	})
	return nil
}

func (s *server) tellReady() {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	if err == nil && fd > 2 {
		_ = unix.Close(fd)
	}
}

// talk serves one node after the other. A new one takes the place of one that
// went without a word, for that one's socket then gives io.EOF.
func (s *server) talk(c *conn) {
	defer c.sock.Close()
	if !s.seat(c) {
		return
	}
	defer s.seat(nil)
	defer s.bodies.connected(nil)
	for {
		o, payload, fd, err := c.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.config.Log.WarnContext(s.ended, "node lost", "err", err)
			}
			return
		}
		if fd >= 0 {
			_ = unix.Close(fd) // none is expected
		}
		if err := s.hear(c, o, payload); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			s.config.Log.WarnContext(s.ended, "node refused", "err", err)
			return
		}
	}
}

// seat makes c the node's connection, unless the process has retired.
func (s *server) seat(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node = c; c == nil {
		s.alone = time.Now()
	}
	return s.mount >= 0
}

// orphaned is how long a process stays without a node, before it retires.
const orphaned = time.Hour

// watchNode retires a process that no node comes back to.
func (s *server) watchNode() {
	for snapshot.Rest(s.ended, time.Minute) {
		s.mu.Lock()
		over := s.node == nil && time.Since(s.alone) > orphaned
		s.mu.Unlock()
		if over {
			s.config.Log.WarnContext(s.ended, "no node has come back")
			s.retire()
			return
		}
	}
}

func (s *server) hear(c *conn, o op, payload []byte) error {
	switch o {
	case opHello:
		if len(payload) < 1 || payload[0] != protocol {
			return errs.New(errs.Unsupported, "it speaks another protocol")
		}
		s.bodies.anew()
		return s.welcome(c)
	case opMissing:
		eachMissing(payload, s.bodies.add)
	case opNamed:
		s.bodies.allNamed()
		s.bodies.connected(func(d tree.Digest) { _ = c.send(opWant, d[:]) }) // a lost node's successor is asked again
	case opHere:
		eachDigest(payload, func(d tree.Digest) { s.bodies.answer(d, nil) })
	case opFailed:
		if n := len(tree.Digest{}); len(payload) >= n {
			s.bodies.answer(tree.Digest(payload[:n]), errs.New(errs.Unavailable, "%s", payload[n:]))
		}
	case opRetire:
		s.retire()
		return io.EOF
	}
	return nil
}

func (s *server) welcome(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount < 0 {
		return errs.New(errs.Conflict, "the process has retired")
	}
	return c.send(opWelcome, []byte(strconv.Itoa(os.Getpid())), s.mount)
}

// retire lets go of everything but the mount's users: another process may
// start, and this one ends with the last of them.
func (s *server) retire() {
	s.bodies.retire()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount < 0 {
		return
	}
	_ = os.Remove(s.config.Socket)
	_ = s.claim.Close() // before who dials hears that nobody listens
	_ = s.listener.Close()
	_ = unix.Close(s.mount)
	s.mount = -1
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.node != nil {
		_ = s.node.sock.Close()
	}
	if s.mount >= 0 {
		_ = unix.Close(s.mount)
	}
}
