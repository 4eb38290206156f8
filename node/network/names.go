package network

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	dnsPort  = 53
	nameTTL  = 5 // seconds: containers come and go
	inFlight = 512
)

// nameServer answers on the gateways of one network.
type nameServer struct {
	servers   []*dns.Server
	elsewhere []forward // where port 53 was taken
}

func (ns *nameServer) redirects() []forward { return ns.elsewhere }

func (ns *nameServer) close() {
	for _, server := range ns.servers {
		if server.Listener != nil {
			_ = server.Listener.Close()
		}
		if server.PacketConn != nil {
			_ = server.PacketConn.Close()
		}
	}
	ns.servers = nil
}

// serveNames listens on a network's gateways. Where something else has port
// 53 of every address of the host, a rule leads to another port.
func (s *Set) serveNames(ctx context.Context, n *network) error {
	handler := &names{set: s, network: n, slots: make(chan struct{}, inFlight)}
	for _, gateway := range n.gateways() {
		for _, protocol := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			at := netip.AddrPortFrom(gateway, dnsPort)
			server, port, err := s.listenNames(ctx, at, protocol)
			if errors.Is(err, unix.EADDRINUSE) {
				server, port, err = s.listenNames(ctx, netip.AddrPortFrom(gateway, 0), protocol)
			}
			if err != nil {
				return err
			}
			if port != dnsPort {
				n.names.elsewhere = append(n.names.elsewhere, forward{protocol, at, netip.AddrPortFrom(gateway, port)})
			}
			server.Handler = handler
			n.names.servers = append(n.names.servers, server)
			s.tasks.Go(func() { _ = server.ActivateAndServe() }) // ends with its socket
		}
	}
	return nil
}

func (s *Set) listenNames(ctx context.Context, at netip.AddrPort, protocol uint8) (server *dns.Server, port uint16, err error) {
	server = &dns.Server{UDPSize: dns.DefaultMsgSize}
	lc := net.ListenConfig{}
	err = s.host.do(func() (err error) {
		if protocol == unix.IPPROTO_TCP {
			server.Listener, err = lc.Listen(ctx, "tcp", at.String())
			if err == nil {
				port = portOf(server.Listener.Addr())
			}
			return err
		}
		server.ReadTimeout = time.Hour // between questions: each time-out wakes the node
		server.PacketConn, err = lc.ListenPacket(ctx, "udp", at.String())
		if err == nil {
			port = portOf(server.PacketConn.LocalAddr())
		}
		return err
	})
	return server, port, err
}

// names answers the questions of one network's containers.
type names struct {
	set     *Set
	network *network
	slots   chan struct{} // questions that wait for other servers
}

// asker is who asks and what is near: all that an answer depends on.
type asker struct {
	networks []*network // that the container is on
	upstream []string   // its own servers
	closed   bool       // no way out
	near     []netip.Prefix
}

// ServeDNS answers names of containers itself and hands everything else on.
// Who is not on the network gets no answer.
func (h *names) ServeDNS(w dns.ResponseWriter, question *dns.Msg) {
	from, ok := remoteAddr(w.RemoteAddr())
	if !ok || !h.network.contains(from) {
		return
	}
	if len(question.Question) != 1 || question.Opcode != dns.OpcodeQuery {
		h.refuse(w, question, dns.RcodeNotImplemented)
		return
	}
	who := h.set.whoAsks(from, h.network)
	q := question.Question[0]
	if answers, known := h.set.lookup(who, q); known {
		reply := new(dns.Msg).SetReply(question)
		reply.Authoritative, reply.RecursionAvailable = true, true
		reply.Answer = answers
		fit(reply, question, w)
		_ = w.WriteMsg(reply)
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		h.refuse(w, question, dns.RcodeServerFailure)
		return
	}
	reply, err := h.set.forwardQuestion(who, question, w.RemoteAddr().Network())
	switch {
	case errors.Is(err, errClosedNetwork):
		h.refuse(w, question, dns.RcodeNameError)
	case err != nil:
		h.refuse(w, question, dns.RcodeServerFailure)
	default:
		reply.Id = question.Id
		fit(reply, question, w)
		_ = w.WriteMsg(reply)
	}
}

func (h *names) refuse(w dns.ResponseWriter, question *dns.Msg, code int) {
	reply := new(dns.Msg).SetRcode(question, code)
	reply.RecursionAvailable = true
	_ = w.WriteMsg(reply)
}

// fit cuts a reply to what the asker takes by UDP.
func fit(reply, question *dns.Msg, w dns.ResponseWriter) {
	if w.RemoteAddr().Network() != "udp" {
		return
	}
	size := dns.MinMsgSize
	if opt := question.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
	}
	reply.Truncate(size)
}

func remoteAddr(a net.Addr) (netip.Addr, bool) {
	ap, err := netip.ParseAddrPort(a.String())
	return ap.Addr().Unmap().WithZone(""), err == nil
}

// whoAsks finds the container by its address. Others on the network, such
// as the host itself, see this network only.
func (s *Set) whoAsks(from netip.Addr, here *network) asker {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := asker{networks: []*network{here}, closed: here.config.Internal}
	a := s.attachments[s.sources[from]]
	if a == nil {
		return who
	}
	who = asker{upstream: a.dns, closed: true}
	for _, e := range a.endpoints {
		if n := s.networks[e.network]; n != nil {
			who.networks = append(who.networks, n)
		}
		who.closed = who.closed && !e.routed
		for _, p := range e.addrs {
			who.near = append(who.near, p.Masked())
		}
	}
	return who
}

// lookup answers from the containers on the asker's networks. A name that
// they have is known, whatever is asked of it.
func (s *Set) lookup(who asker, q dns.Question) (answers []dns.RR, known bool) {
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	header := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: nameTTL}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		return nil, false
	}
	if q.Qtype == dns.TypePTR {
		target, ok := s.reverse(who, name)
		if !ok {
			return nil, false
		}
		header.Rrtype = dns.TypePTR
		return []dns.RR{&dns.PTR{Hdr: header, Ptr: dns.Fqdn(target)}}, true
	}
	found := s.addressesOf(who, name)
	for _, a := range found {
		switch {
		case a.Is4() && q.Qtype == dns.TypeA:
			header.Rrtype = dns.TypeA
			answers = append(answers, &dns.A{Hdr: header, A: a.AsSlice()})
		case a.Is6() && q.Qtype == dns.TypeAAAA:
			header.Rrtype = dns.TypeAAAA
			answers = append(answers, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	if len(answers) > 1 { // each of those who share a name gets its turn
		s.spread++
		turn := int(s.spread) % len(answers)
		answers = slices.Concat(answers[turn:], answers[:turn])
	}
	return answers, len(found) > 0
}

// addressesOf a name, optionally followed by the network's. The caller holds
// mu.
func (s *Set) addressesOf(who asker, name string) []netip.Addr {
	var found []netip.Addr
	for _, n := range who.networks {
		bare, _ := strings.CutSuffix(name, "."+strings.ToLower(n.config.Name))
		for _, a := range s.attachments {
			for _, e := range a.endpoints {
				if e.network == n.id && (answersTo(a, e, name) || bare != name && answersTo(a, e, bare)) {
					for _, p := range e.addrs {
						found = append(found, p.Addr())
					}
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b netip.Addr) int { return a.Compare(b) })
	return slices.Compact(found)
}

// answersTo: a container is known by its name, its aliases and its id.
func answersTo(a *attachment, e *endpoint, name string) bool {
	return strings.EqualFold(a.name, name) || len(name) >= 12 && isShortID(name, a.container) ||
		slices.ContainsFunc(e.aliases, func(alias string) bool { return strings.EqualFold(alias, name) })
}

// reverse finds the name of an address. The caller holds mu.
func (s *Set) reverse(who asker, name string) (string, bool) {
	addr, ok := reverseAddr(name)
	if !ok {
		return "", false
	}
	a := s.attachments[s.sources[addr]]
	if a == nil {
		return "", false
	}
	for _, e := range a.endpoints {
		mine := slices.ContainsFunc(who.networks, func(n *network) bool { return n.id == e.network })
		has := slices.ContainsFunc(e.addrs, func(p netip.Prefix) bool { return p.Addr() == addr })
		if mine && has {
			return cmp.Or(a.name, a.container[:min(12, len(a.container))]) + "." + e.title, true
		}
	}
	return "", false
}

// reverseAddr reads 4.3.2.1.in-addr.arpa and its IPv6 brother.
func reverseAddr(name string) (netip.Addr, bool) {
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(labels, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	labels, ok := strings.CutSuffix(name, ".ip6.arpa")
	parts := strings.Split(labels, ".")
	if !ok || len(parts) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(parts)
	var text strings.Builder
	for i, digit := range parts {
		if len(digit) != 1 {
			return netip.Addr{}, false
		}
		if i > 0 && i%4 == 0 {
			text.WriteByte(':')
		}
		text.WriteString(digit)
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}
