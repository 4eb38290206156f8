package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holder has one port of the host, so that nobody else takes it. What
// reaches its socket is handed on: the rules let nothing get there, but where
// they cannot translate, as for [::1] and for IPv6 to a container that has
// IPv4 only.
type holder struct {
	port  uint16 // on the host
	inner uint16 // in the container
	to    atomic.Pointer[netip.AddrPort]
	tcp   net.Listener
	udp   *net.UDPConn
}

const (
	dialTimeout  = 10 * time.Second
	udpIdle      = 90 * time.Second // a flow that is silent so long is over
	udpFlowLimit = 1024             // of one port at a time
)

// bind listens; both families where address is empty.
func (h *holder) bind(ctx context.Context, protocol, address string) error {
	where := net.JoinHostPort(address, strconv.Itoa(int(h.port)))
	if protocol == "tcp" {
		l, err := (&net.ListenConfig{}).Listen(ctx, familyNetwork("tcp", address), where)
		if err != nil {
			return err
		}
		h.tcp, h.port = l, portOf(l.Addr())
		return nil
	}
	lc := net.ListenConfig{Control: wantPacketInfo}
	l, err := lc.ListenPacket(ctx, familyNetwork("udp", address), where)
	if err != nil {
		return err
	}
	h.udp, h.port = l.(*net.UDPConn), portOf(l.LocalAddr())
	return nil
}

// familyNetwork is tcp, tcp4 or tcp6: 0.0.0.0 and :: mean one family only.
func familyNetwork(protocol, address string) string {
	a, err := netip.ParseAddr(address)
	switch {
	case err != nil:
		return protocol
	case a.Is4():
		return protocol + "4"
	}
	return protocol + "6"
}

func portOf(a net.Addr) uint16 {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0
	}
	return ap.Port()
}

// wantPacketInfo asks for the address that each packet was sent to, which
// the answer must come from.
func wantPacketInfo(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		// One of them fails, as the socket has one family; without either,
		// answers go out by the address that the route says.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
}

func (h *holder) close() {
	if h.tcp != nil {
		_ = h.tcp.Close()
	}
	if h.udp != nil {
		_ = h.udp.Close()
	}
}

func (h *holder) target() (string, bool) {
	to := h.to.Load()
	if to == nil || !to.Addr().IsValid() {
		return "", false
	}
	return to.String(), true
}

// serve hands on what comes until the holder is closed.
func (h *holder) serve(s *Set) {
	if h.tcp != nil {
		s.tasks.Go(func() { h.serveTCP(s) })
	}
	if h.udp != nil {
		s.tasks.Go(func() { h.serveUDP(s) })
	}
}

func (h *holder) serveTCP(s *Set) {
	for {
		conn, err := h.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, for one: others may close theirs
			if !pause(s.life, 50*time.Millisecond) {
				return
			}
			continue
		}
		s.tasks.Go(func() { h.passTCP(s, conn.(*net.TCPConn)) })
	}
}

// pause waits, and says whether there is reason to go on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (h *holder) passTCP(s *Set, client *net.TCPConn) {
	defer client.Close()
	to, ok := h.target()
	if !ok {
		return
	}
	conn, err := s.host.dial(s.life, "tcp", to, dialTimeout)
	if err != nil {
		_ = client.SetLinger(0) // refused, not ended well
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	stop := context.AfterFunc(s.life, func() { _ = client.Close(); _ = server.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { pour(server, client) })
	pour(client, server)
	both.Wait()
}

// pour copies until the end of one direction, and passes the end on.
func pour(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.Close() // the other direction cannot go on either
		_ = from.Close()
		return
	}
	_ = to.CloseWrite()
}
