package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// udpFlows are the clients of one held port. Each has a socket of its own
// towards the container, so that answers find their way back.
type udpFlows struct {
	mu    sync.Mutex
	flows map[netip.AddrPort]*net.UDPConn
}

func (t *udpFlows) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.flows {
		_ = c.Close()
	}
}

func (h *holder) serveUDP(s *Set) {
	t := &udpFlows{flows: map[netip.AddrPort]*net.UDPConn{}}
	defer t.close()
	raw, err := h.udp.SyscallConn()
	if err != nil {
		return
	}
	for {
		// A buffer is taken only when there is something to read: ports are
		// many, and most are silent.
		var peek [1]byte
		err := raw.Read(func(fd uintptr) bool {
			_, _, err := unix.Recvfrom(int(fd), peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			return !errors.Is(err, unix.EAGAIN)
		})
		if err != nil || !h.passUDP(s, t) {
			return
		}
	}
}

// passUDP hands one packet on. It says whether the port is still held.
func (h *holder) passUDP(s *Set, t *udpFlows) bool {
	packet, info := make([]byte, 1<<16), make([]byte, 128)
	n, ninfo, _, client, err := h.udp.ReadMsgUDPAddrPort(packet, info)
	if err != nil {
		return !errors.Is(err, net.ErrClosed)
	}
	server := h.flow(s, t, client, info[:ninfo])
	if server != nil {
		_, _ = server.Write(packet[:n]) // as lossy as UDP is
	}
	return true
}

// flow finds or makes the socket of a client.
func (h *holder) flow(s *Set, t *udpFlows, client netip.AddrPort, info []byte) *net.UDPConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if server, ok := t.flows[client]; ok {
		return server
	}
	to, ok := h.target()
	if !ok || len(t.flows) >= udpFlowLimit {
		return nil
	}
	conn, err := s.host.dial(s.life, "udp", to, dialTimeout)
	if err != nil {
		return nil
	}
	server := conn.(*net.UDPConn)
	t.flows[client] = server
	s.tasks.Go(func() {
		h.answer(server, client, info)
		t.mu.Lock()
		delete(t.flows, client)
		t.mu.Unlock()
		_ = server.Close()
	})
	return server
}

// answer sends back what the container says until it is silent for long.
func (h *holder) answer(server *net.UDPConn, client netip.AddrPort, info []byte) {
	packet := make([]byte, 1<<16)
	for {
		if server.SetReadDeadline(time.Now().Add(udpIdle)) != nil {
			return
		}
		n, err := server.Read(packet)
		switch {
		case errors.Is(err, unix.ECONNREFUSED): // nobody listens yet
			continue
		case errors.Is(err, os.ErrDeadlineExceeded) || err != nil:
			return
		}
		if _, _, err := h.udp.WriteMsgUDPAddrPort(packet[:n], info, client); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}
