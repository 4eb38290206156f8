package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
)

// shim is the connection to one process that runs containers.
type shim struct {
	address string
	version atomic.Int32
	driver  *Driver
	client  *ttrpc.Client
	life    context.Context //nolint:containedctx // what waits for the shim's answers ends with the connection
	end     context.CancelFunc
	gone    chan struct{} // closed when the connection is, and who has to be has been told

	// Under the driver's lock.
	pid     int            // as the shim says; 0 where it does not
	tasks   map[*task]bool // that it runs, or is about to
	leaving bool           // we let it go: nobody has died
}

// connect finds the connection to an endpoint, or makes it, and adds a
// container to those that depend on it.
func (d *Driver) connect(ctx context.Context, e endpoint, t *task) (*shim, error) {
	if s := d.join(e.Address, t); s != nil {
		return s, nil
	}
	conn, err := dial(ctx, e.Address, d.Limits.Start)
	if err != nil {
		return nil, err
	}
	s := &shim{address: e.Address, driver: d, gone: make(chan struct{}), tasks: map[*task]bool{t: true}}
	s.version.Store(int32(e.Version))
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	d.mu.Lock()
	if d.closed || d.shims[e.Address] != nil {
		d.mu.Unlock()
		s.end()
		_ = conn.Close()
		if joined := d.join(e.Address, t); joined != nil {
			return joined, nil
		}
		return nil, errs.New(errs.Unavailable, "the shim, or the node, is shutting down")
	}
	d.shims[e.Address] = s
	s.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { d.disconnected(s) }))
	d.mu.Unlock()
	s.learn(ctx, t)
	return s, nil
}

// join adds a container to a connection that is there.
func (d *Driver) join(address string, t *task) *shim {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.shims[address]
	if d.closed || s == nil || s.leaving {
		return nil
	}
	s.tasks[t] = true
	return s
}

// learn asks the shim for its own process. One that does not know version 3
// of the protocol is spoken to in version 2.
func (s *shim) learn(ctx context.Context, t *task) {
	answer := &taskapi.ConnectResponse{}
	err := s.call(ctx, s.driver.Limits.soon(), "Connect", &taskapi.ConnectRequest{ID: t.Name}, answer)
	if errors.Is(err, errs.Unsupported) && s.version.Load() > 2 {
		s.version.Store(2)
		err = s.call(ctx, s.driver.Limits.soon(), "Connect", &taskapi.ConnectRequest{ID: t.Name}, answer)
	}
	if err != nil {
		s.driver.Log.DebugContext(ctx, "a shim does not say which process it is", "container", t.ID, "error", err)
		return
	}
	s.driver.mu.Lock()
	s.pid = int(answer.GetShimPid())
	s.driver.mu.Unlock()
	s.driver.moveOut(ctx, s, t)
}

// disconnected follows the end of a connection, whoever ended it.
func (d *Driver) disconnected(s *shim) {
	d.mu.Lock()
	if d.shims[s.address] == s {
		delete(d.shims, s.address)
	}
	var lost []*task
	if !s.leaving {
		for t := range s.tasks {
			if t.settled { // who is making the others sees for himself
				lost = append(lost, t)
			}
		}
	}
	if len(lost) > 0 && !d.closed {
		d.work.Go(func() { d.lost(s, lost) })
	}
	d.mu.Unlock()
	s.end()
	close(s.gone)
}

// close ends the connection, on purpose.
func (s *shim) close() error {
	s.driver.mu.Lock()
	s.leaving = true
	s.driver.mu.Unlock()
	if s.client == nil { // it was gone before we came
		return nil
	}
	err := s.client.Close()
	<-s.gone
	return err
}

// dead says whether the connection has ended.
func (s *shim) dead() bool {
	select {
	case <-s.gone:
		return true
	default:
		return s.life.Err() != nil
	}
}

// call asks the shim for something and waits for the answer, at most for
// limit; 0 is for as long as it takes. The messages of both versions of the
// protocol are the same.
func (s *shim) call(ctx context.Context, limit time.Duration, method string, request, answer proto.Message) error {
	if s.dead() {
		return errs.New(errs.Unavailable, "the shim is gone: %s: %w", strings.ToLower(method), ttrpc.ErrClosed)
	}
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if limit > 0 {
		bounded, cancel = context.WithTimeout(ctx, limit)
	}
	defer cancel()
	err := s.client.Call(bounded, fmt.Sprintf("containerd.task.v%d.Task", s.version.Load()), method, request, answer)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, ttrpc.ErrProtocol):
		return errs.New(errs.Unavailable, "the shim is gone: %s: %w", strings.ToLower(method), err)
	case ctx.Err() != nil:
		return fmt.Errorf("shim: %s: %w", strings.ToLower(method), ctx.Err())
	case bounded.Err() != nil:
		return errs.New(errs.Timeout, "the shim does not answer: %s took longer than %s", strings.ToLower(method), limit)
	}
	return answered(err)
}

// answered gives an error that a shim answered a kind.
func answered(err error) error {
	err = errgrpc.ToNative(err)
	for kind, is := range map[errs.Kind]func(error) bool{
		errs.NotFound: errdefs.IsNotFound,
		errs.Exists:   errdefs.IsAlreadyExists,
		errs.Invalid:  errdefs.IsInvalidArgument,
		errs.Conflict: func(err error) bool {
			return errdefs.IsFailedPrecondition(err) || errdefs.IsConflict(err) || errdefs.IsAborted(err)
		},
		errs.Unsupported: errdefs.IsNotImplemented,
		errs.Denied:      errdefs.IsPermissionDenied,
		errs.Exhausted:   errdefs.IsResourceExhausted,
		errs.Unavailable: errdefs.IsUnavailable,
		errs.Timeout:     errdefs.IsDeadlineExceeded,
		errs.Canceled:    errdefs.IsCanceled,
	} {
		if is(err) {
			return errs.New(kind, "shim: %w", err)
		}
	}
	if matches(err.Error(), `does not exist`, `no such process`, `not running`, `already finished`, `container .*stopped`) {
		return errs.New(errs.NotFound, "shim: %w", err)
	}
	return fmt.Errorf("shim: %w", err)
}

// dial connects to a shim's socket.
func dial(ctx context.Context, address string, limit time.Duration) (net.Conn, error) {
	path := "\x00" + address // abstract, as the oldest shims have it
	if scheme, rest, uri := strings.Cut(address, "://"); uri {
		if scheme != "unix" {
			return nil, errs.New(errs.Unsupported, "the shim listens at %s: only sockets of this machine are understood", quote([]byte(address)))
		}
		path = rest
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "the shim does not listen at %s: %w", quote([]byte(address)), err)
	}
	return conn, nil
}

// removeSocket removes a socket that a shim left, unless somebody listens, who
// may only just be ending.
func removeSocket(ctx context.Context, address string) {
	path, ok := strings.CutPrefix(address, "unix://")
	info, err := os.Lstat(path)
	if !ok || err != nil || info.Mode().Type() != os.ModeSocket {
		return
	}
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for range 10 {
		conn, err := dial(ctx, address, time.Second)
		if err != nil {
			_ = os.Remove(path)
			return
		}
		_ = conn.Close()
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}
