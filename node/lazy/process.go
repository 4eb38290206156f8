package lazy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// helloLimit is how long a process may take to answer. It serves one node at a
// time.
const helloLimit = 5 * time.Second

// process is node's hold on the process.
type process struct {
	conn  *conn
	pid   int
	mount int // descriptor of the tree
}

// Dir returns a descriptor of the tree of what is missing, the caller's own,
// to be mounted behind the folder of objects. It starts the process where
// there is none. Unsupported: this kernel has no FUSE.
func (s *Set) Dir(ctx context.Context) (int, error) {
	s.starting.Lock()
	defer s.starting.Unlock()
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p == nil {
		var err error
		if p, err = s.find(ctx); err != nil {
			return -1, fmt.Errorf("process for missing files: %w", err)
		}
		if err = s.adopt(ctx, p); err != nil {
			return -1, fmt.Errorf("process for missing files: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, err := unix.FcntlInt(uintptr(p.mount), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("dup", err)
	}
	return fd, nil
}

// Pid is that of the process, 0 while there is none.
func (s *Set) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	return s.process.pid
}

// find talks to the process, after it has started one if need be.
func (s *Set) find(ctx context.Context) (*process, error) {
	if p, err := s.dial(); err == nil {
		return p, nil
	}
	if err := s.startProcess(ctx); err != nil {
		return nil, err
	}
	p, err := s.dial()
	if err != nil {
		return nil, errs.New(errs.Unavailable, "it did not start, see %s: %w", s.logPath(), err)
	}
	return p, nil
}

func (s *Set) dial() (*process, error) {
	sock, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: s.Socket, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	p := &process{conn: newConn(sock), mount: -1}
	if err := p.hello(); err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	return p, nil
}

func (p *process) hello() error {
	if err := p.conn.send(opHello, []byte{protocol}); err != nil {
		return err
	}
	_ = p.conn.sock.SetReadDeadline(time.Now().Add(helloLimit))
	o, payload, fd, err := p.conn.receive()
	if err != nil {
		return err
	}
	_ = p.conn.sock.SetReadDeadline(time.Time{})
	p.mount = fd
	if p.pid, err = strconv.Atoi(string(payload)); err != nil || o != opWelcome || fd < 0 {
		p.close()
		return errs.New(errs.Unavailable, "it answers something else")
	}
	return nil
}

// adopt makes p the process, and tells it what is missing.
func (s *Set) adopt(ctx context.Context, p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.life.Err(); err != nil {
		p.close()
		return err
	}
	for _, l := range s.layers {
		var missing []Missing
		for d, size := range l.missing {
			missing = append(missing, Missing{d, size})
		}
		p.name(missing)
	}
	if err := p.conn.send(opNamed, nil); err != nil {
		p.close()
		return err
	}
	s.process = p
	s.work.Go(func() { s.follow(context.WithoutCancel(ctx), p) })
	return nil
}

// follow hears what the process wants until it is gone.
func (s *Set) follow(ctx context.Context, p *process) {
	for {
		o, payload, fd, err := p.conn.receive()
		if err != nil {
			break
		}
		if fd >= 0 {
			_ = unix.Close(fd) // none is expected
		}
		if o == opWant {
			eachDigest(payload, func(d tree.Digest) { s.work.Go(func() { s.wanted(p, d) }) })
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.close()
	if s.process != p { // retired
		return
	}
	s.process = nil
	if s.life.Err() == nil {
		s.Log.WarnContext(ctx, "the process for missing files is gone; containers that need them must be started again", "pid", p.pid)
	}
}

func (p *process) name(missing []Missing) {
	items := make([]byte, 0, sizedLen*len(missing))
	for _, m := range missing {
		items = appendMissing(items, m)
	}
	_ = eachPacket(items, sizedLen, func(part []byte) error { return p.conn.send(opMissing, part) })
}

// tell says something to a process that may be gone: then it matters no more.
func (p *process) tell(o op, payload []byte) { _ = p.conn.send(o, payload) }

// retire lets the process end with the last mount that needs it. It says when
// it has let go of what the next process needs.
func (p *process) retire() {
	_ = p.conn.sock.SetReadDeadline(time.Time{})
	p.tell(opRetire, nil)
	if p.mount >= 0 {
		_ = unix.Close(p.mount)
		p.mount = -1
	}
}

func (p *process) close() {
	_ = p.conn.sock.Close()
	if p.mount >= 0 {
		_ = unix.Close(p.mount)
		p.mount = -1
	}
}

func (s *Set) logPath() string {
	return strings.TrimSuffix(s.PidFile, filepath.Ext(s.PidFile)) + ".log"
}

// startProcess runs Command and waits until it listens, or is gone.
func (s *Set) startProcess(ctx context.Context) error {
	path, err := exec.LookPath(s.Command[0])
	if err != nil {
		return err
	}
	// Its own file: node's standard error may close long before it ends.
	log, err := os.OpenFile(s.logPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	process, err := os.StartProcess(path, s.Command, &os.ProcAttr{
		Dir: "/", Env: append(os.Environ(), readyEnv+"=3", "GOGC=50"), Files: []*os.File{null, log, log, theirs},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = theirs.Close()
	if err != nil {
		return err
	}
	s.reaped.Go(func() { _, _ = process.Wait() })
	defer context.AfterFunc(ctx, func() { _ = ready.Close() })()
	_, _ = ready.Read(make([]byte, 1)) // ends when the process closes it
	return ctx.Err()
}
