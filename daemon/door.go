package daemon

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"berth/base/group"
)

// preface is what every client of HTTP/2 says first.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// patience is how long a client may take to say which protocol it speaks.
const patience = 30 * time.Second

// haste is how long one may take that has just come when the node is to stop.
const haste = 100 * time.Millisecond

// door is one socket for two protocols: HTTP/2 with what gRPC clients begin
// with goes one way, all else the other. Who says nothing holds up nobody else.
type door struct {
	listener   net.Listener
	http, grpc *way
}

func newDoor(listener net.Listener) *door {
	return &door{listener: listener, http: newWay(listener.Addr()), grpc: newWay(listener.Addr())}
}

// run has the two served until ctx is done. They end when nobody is let in any
// more: whoever was is answered, and who comes then waits for the next node.
func (d *door) run(ctx context.Context, http, grpc func(context.Context, net.Listener) error) error {
	g := group.New(context.WithoutCancel(ctx))
	g.Go("rest", func(ctx context.Context) error { return http(ctx, d.http) })
	g.Go("containerd", func(ctx context.Context) error { return grpc(ctx, d.grpc) })
	g.Go("door", func(open context.Context) error {
		open, shut := context.WithCancel(open)
		defer shut()
		defer context.AfterFunc(ctx, shut)()
		return d.admit(open)
	})
	return g.Wait()
}

// admit accepts connections until ctx is done. A way ends when whoever serves
// there closes it.
func (d *door) admit(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() { _ = d.listener.Close() })
	for {
		conn, err := d.listener.Accept()
		switch {
		case err == nil:
			asking.Go(func() { d.guide(ctx, conn) })
		case ctx.Err() != nil:
			return ctx.Err()
		case isTemporary(err): // out of descriptors: wait for some to come free
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			return err
		}
	}
}

func isTemporary(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Temporary() //nolint:staticcheck // there is no other word for EMFILE
}

// guide sends a connection its way.
func (d *door) guide(ctx context.Context, conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(haste)) })
	begun, isHTTP2, err := sniff(conn)
	stop()
	if err != nil && (len(begun) == 0 || ctx.Err() != nil) {
		_ = conn.Close() // it has said nothing, or too little in the time left
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	to := d.http
	if isHTTP2 {
		to = d.grpc
	}
	to.give(&resumed{Conn: conn, begun: begun})
}

// sniff reads as little as tells whether it is HTTP/2, and gives what it read.
func sniff(conn net.Conn) (begun []byte, isHTTP2 bool, err error) {
	buf := make([]byte, len(preface))
	for len(begun) < len(buf) {
		n, err := conn.Read(buf[len(begun):])
		begun = buf[:len(begun)+n]
		if string(begun) != preface[:len(begun)] {
			return begun, false, nil
		}
		if err != nil {
			return begun, false, err
		}
	}
	return begun, true, nil
}

// resumed is a connection of which some bytes have been read.
type resumed struct {
	net.Conn
	begun []byte
}

// Read implements net.Conn.
func (r *resumed) Read(p []byte) (int, error) {
	if len(r.begun) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.begun)
	r.begun = r.begun[n:]
	return n, nil
}

// CloseWrite lets the client see the end of what it is told, and still be heard:
// closed at once, it could lose the answer.
func (r *resumed) CloseWrite() error {
	if half, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// way is a listener that is given its connections.
type way struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newWay(addr net.Addr) *way {
	return &way{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (w *way) give(conn net.Conn) {
	select {
	case w.conns <- conn:
	case <-w.closed:
		_ = conn.Close()
	}
}

// Accept implements net.Listener.
func (w *way) Accept() (net.Conn, error) {
	select {
	case conn := <-w.conns:
		return conn, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (w *way) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// Addr implements net.Listener.
func (w *way) Addr() net.Addr { return w.addr }
