package network

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"berth/base/errs"
	"berth/spec"
)

func TestNeighbours(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	web, db := m.box(t, s, "web", spec.NetworkChoice{}), m.box(t, s, "db", spec.NetworkChoice{})
	echo(t, web.ns, "tcp", 80)
	echo(t, web.ns, "udp", 80)
	for _, network := range []string{"tcp", "udp"} {
		equal(t, "seen as", reaches(t, "neighbour", db.ns, network, web.addr4()+":80"), db.addr4())
		equal(t, "seen as", reaches(t, "neighbour", db.ns, network, net.JoinHostPort(web.addr6(), "80")), db.addr6())
		reaches(t, "from the host", m.host, network, web.addr4()+":80")
		reaches(t, "itself", web.ns, network, web.addr4()+":80")
		blocked(t, "unpublished port from outside", m.outside, network, web.addr4()+":80")
	}
	equal(t, "interface", web.Endpoints[0].Interface, "eth0")

	// The way out is masqueraded.
	echo(t, m.outside, "tcp", 7)
	equal(t, "seen outside as", reaches(t, "out", web.ns, "tcp", outsideAddr4+":7"), hostAddr4)
	equal(t, "seen outside as", reaches(t, "out", web.ns, "tcp", net.JoinHostPort(outsideAddr6, "7")), hostAddr6)
}

func TestIsolation(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	for _, cfg := range []spec.NetworkConfig{{Name: "red", IPv6: true}, {Name: "blue", IPv6: true}, {Name: "closed", Internal: true}} {
		_, err := s.Create(t.Context(), cfg)
		must(t, err)
	}
	red, blue := m.box(t, s, "red1", spec.NetworkChoice{Mode: "red"}), m.box(t, s, "blue1", spec.NetworkChoice{Mode: "blue"})
	in1, in2 := m.box(t, s, "in1", spec.NetworkChoice{Mode: "closed"}), m.box(t, s, "in2", spec.NetworkChoice{Mode: "closed"})
	both := m.box(t, s, "both", spec.NetworkChoice{Mode: "red", Endpoints: []spec.EndpointConfig{{Network: "blue"}}})
	plain := m.box(t, s, "plain", spec.NetworkChoice{})
	for _, b := range []*box{red, blue, in1, plain} {
		echo(t, b.ns, "tcp", 80)
	}
	echo(t, m.outside, "tcp", 7)
	blocked(t, "between networks", red.ns, "tcp", blue.addr4()+":80")
	blocked(t, "between networks", red.ns, "tcp", net.JoinHostPort(blue.addr6(), "80"))
	blocked(t, "to the default network", red.ns, "tcp", plain.addr4()+":80")
	blocked(t, "into an internal network", red.ns, "tcp", in1.addr4()+":80")
	blocked(t, "out of an internal network", in1.ns, "tcp", outsideAddr4+":7")
	reaches(t, "within an internal network", in2.ns, "tcp", in1.addr4()+":80")
	reaches(t, "out", red.ns, "tcp", outsideAddr4+":7")
	reaches(t, "on both", both.ns, "tcp", red.addr4()+":80")
	reaches(t, "on both", both.ns, "tcp", blue.addr4()+":80")
	reaches(t, "on both, out", both.ns, "tcp", outsideAddr4+":7")

	// A container reaches only what the host serves to others.
	in(t, m.host, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:99")
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
	must(t, runIn(red.ns, func() error {
		_, err := sysctl("net/ipv4/conf/all/route_localnet", "1")
		return err
	}))
	blocked(t, "the host's loopback", red.ns, "tcp", "127.0.0.1:99")

	// Names follow networks.
	equal(t, "blue1 as both sees it", answers(both.ask(t, "blue1", dns.TypeA)), []string{blue.addr4()})
	if got := red.ask(t, "in1", dns.TypeA); len(got.Answer) > 0 {
		t.Errorf("red1 resolves in1: %v", got.Answer)
	}
	if got := in1.ask(t, "example.org", dns.TypeA); got.Rcode != dns.RcodeNameError {
		t.Errorf("an internal network asks the world: %v", got)
	}
}

func TestPublishedPorts(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	_, err := s.Create(t.Context(), spec.NetworkConfig{Name: "four"})
	must(t, err)
	web := m.box(t, s, "web", spec.NetworkChoice{Ports: []spec.PortMapping{
		{HostPort: 8080, ContainerPort: 80},
		{HostPort: 8080, ContainerPort: 80, Protocol: "udp"},
		{HostPort: 9000, ContainerPort: 80, Range: 1, HostIP: "127.0.0.1"},
		{HostPort: 7000, ContainerPort: 80, HostIP: "203.0.113.1"},
		{HostPort: 7100, ContainerPort: 80, HostIP: "::1"},
		{HostPort: 5000, ContainerPort: 79, Range: 3},
		{HostPort: 5000, ContainerPort: 79, Range: 3, Protocol: "sctp"},
		{ContainerPort: 80},
	}})
	old := m.box(t, s, "old", spec.NetworkChoice{Mode: "four", Ports: []spec.PortMapping{
		{HostPort: 8081, ContainerPort: 80}, {HostPort: 8081, ContainerPort: 80, Protocol: "udp"},
	}})
	neighbour, stranger := m.box(t, s, "neighbour", spec.NetworkChoice{}), m.box(t, s, "stranger", spec.NetworkChoice{Mode: "four"})
	for _, b := range []*box{web, old} {
		echo(t, b.ns, "tcp", 80)
		echo(t, b.ns, "udp", 80)
	}
	echo(t, web.ns, "tcp", 79)
	echo(t, web.ns, "tcp", 81)
	chosen := web.Ports[len(web.Ports)-1].HostPort
	if chosen == 0 {
		t.Fatal("no free port was chosen")
	}

	everywhere := func(when string) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			equal(t, when+": seen as", reaches(t, when+": outside", m.outside, network, hostAddr4+":8080"), outsideAddr4)
			equal(t, when+": seen as", reaches(t, when+": outside, IPv6", m.outside, network, net.JoinHostPort(hostAddr6, "8080")), outsideAddr6)
			reaches(t, when+": localhost", m.host, network, "127.0.0.1:8080")
			reaches(t, when+": host's address", m.host, network, hostAddr4+":8080")
			reaches(t, when+": gateway", m.host, network, web.Endpoints[0].Gateway4+":8080")
			reaches(t, when+": hairpin", web.ns, network, hostAddr4+":8080")
			reaches(t, when+": hairpin, IPv6", web.ns, network, net.JoinHostPort(hostAddr6, "8080"))
			reaches(t, when+": neighbour by the host", neighbour.ns, network, hostAddr4+":8080")
			reaches(t, when+": other network by the host", stranger.ns, network, hostAddr4+":8080")
			reaches(t, when+": IPv4 only", m.outside, network, hostAddr4+":8081")
		}
		reaches(t, when+": on loopback only", m.host, "tcp", "127.0.0.1:9000")
		blocked(t, when+": loopback only, from outside", m.outside, "tcp", hostAddr4+":9000")
		reaches(t, when+": on one address", m.outside, "tcp", hostAddr4+":7000")
		blocked(t, when+": other address", m.host, "tcp", "127.0.0.1:7000")
		for port := 5000; port < 5003; port++ {
			reaches(t, when+": range", m.outside, "tcp", hostAddr4+":"+strconv.Itoa(port))
		}
		reaches(t, when+": chosen", m.outside, "tcp", hostAddr4+":"+strconv.Itoa(int(chosen)))
	}
	everywhere("first")
	// What rules cannot translate is served by the node itself.
	for _, network := range []string{"tcp", "udp"} {
		reaches(t, "[::1]", m.host, network, "[::1]:8080")
		reaches(t, "[::1] to IPv4 only", m.host, network, "[::1]:8081")
		reaches(t, "IPv6 to IPv4 only", m.outside, network, net.JoinHostPort(hostAddr6, "8081"))
	}
	reaches(t, "[::1] only", m.host, "tcp", "[::1]:7100")

	closeSet(t, s)
	everywhere("node dead")
	s = m.open(t)
	everywhere("node back")
	reaches(t, "[::1], node back", m.host, "tcp", "[::1]:8080")

	ctx, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	for _, remove := range []func() error{s.firewall.remove, s.firewall.remove, s.firewall.removeForward} {
		must(t, remove())
		s.rulesBack(t)
	}
	end()
	running.Wait()
	everywhere("rules flushed and back")

	_, err = s.Attach(t.Context(), m.request(t, s, "late", spec.NetworkChoice{Ports: []spec.PortMapping{{HostPort: 8080, ContainerPort: 1}}}))
	wantKind(t, err, errs.Conflict, "port 8080/tcp is in use by container web")
	in(t, m.host, func() error {
		l, err := net.Listen("tcp", ":6000")
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
	_, err = s.Attach(t.Context(), m.request(t, s, "later", spec.NetworkChoice{Ports: []spec.PortMapping{{HostPort: 6000, ContainerPort: 1}}}))
	wantKind(t, err, errs.Conflict, "port 6000/tcp is in use on the host")
	_, err = s.Attach(t.Context(), m.request(t, s, "sctp", spec.NetworkChoice{Ports: []spec.PortMapping{{HostPort: 5001, ContainerPort: 1, Protocol: "sctp"}}}))
	wantKind(t, err, errs.Conflict, "port 5001/sctp is in use")

	must(t, s.Detach(t.Context(), web.id))
	blocked(t, "detached", m.outside, "tcp", hostAddr4+":8080")
	blocked(t, "detached", m.outside, "udp", hostAddr4+":8080")
	again := m.box(t, s, "again", spec.NetworkChoice{Ports: []spec.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "udp"}}})
	echo(t, again.ns, "udp", 80)
	reaches(t, "taken over", m.outside, "udp", hostAddr4+":8080")
}

func TestConnectAndDisconnect(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	for _, cfg := range []spec.NetworkConfig{{Name: "inner", Internal: true}, {Name: "outer"}} {
		_, err := s.Create(t.Context(), cfg)
		must(t, err)
	}
	b := m.box(t, s, "b", spec.NetworkChoice{Mode: "inner", Ports: []spec.PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	other := m.box(t, s, "other", spec.NetworkChoice{Mode: "outer"})
	echo(t, b.ns, "tcp", 80)
	echo(t, m.outside, "tcp", 7)
	blocked(t, "before", b.ns, "tcp", outsideAddr4+":7")
	blocked(t, "before", m.outside, "tcp", hostAddr4+":8080")

	req := AttachRequest{Container: b.id, Name: "b", Namespace: b.ns}
	e, err := s.Connect(t.Context(), req, spec.EndpointConfig{Network: "outer", Aliases: []string{"Also"}})
	must(t, err)
	equal(t, "interface", e.Interface, "eth1")
	reaches(t, "connected", b.ns, "tcp", outsideAddr4+":7")
	reaches(t, "connected", m.outside, "tcp", hostAddr4+":8080")
	equal(t, "alias", answers(other.ask(t, "aLSO", dns.TypeA)), []string{addrOf(e.IPv4)})
	s.Rename(b.id, "c")
	equal(t, "new name", answers(other.ask(t, "c", dns.TypeA)), []string{addrOf(e.IPv4)})
	_, err = s.Connect(t.Context(), req, spec.EndpointConfig{Network: "outer"})
	wantKind(t, err, errs.Conflict, "already")
	wantKind(t, s.Remove(t.Context(), "outer"), errs.Conflict, "is on it")

	// The first way out goes: the next one takes over.
	_, err = s.Connect(t.Context(), req, spec.EndpointConfig{Network: Bridge})
	must(t, err)
	must(t, s.Disconnect(t.Context(), b.id, "outer"))
	reaches(t, "by the bridge", b.ns, "tcp", outsideAddr4+":7")
	reaches(t, "by the bridge", m.outside, "tcp", hostAddr4+":8080")
	wantKind(t, s.Disconnect(t.Context(), b.id, "outer"), errs.Conflict, "not on network outer")
	if got, _ := s.Attached(b.id); len(got.Endpoints) != 2 {
		t.Errorf("attached to %v", got.Endpoints)
	}
	e, err = s.Connect(t.Context(), req, spec.EndpointConfig{Network: "outer"})
	must(t, err)
	equal(t, "the free interface", e.Interface, "eth1")
}

func TestNames(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	shared := spec.NetworkChoice{Endpoints: []spec.EndpointConfig{{Network: "bridge", Aliases: []string{"pool"}}}}
	a, b := m.box(t, s, "Alpha", shared), m.box(t, s, "beta", shared)
	for _, name := range []string{"alpha", "ALPHA", "alpha.bridge", a.id[:12]} {
		equal(t, name, answers(b.ask(t, name, dns.TypeA)), []string{a.addr4()})
		equal(t, name+" AAAA", answers(b.ask(t, name, dns.TypeAAAA)), []string{a.addr6()})
	}
	mx := b.ask(t, "alpha", dns.TypeMX)
	if mx.Rcode != dns.RcodeSuccess || len(mx.Answer) != 0 {
		t.Errorf("MX of a container: %v", mx)
	}
	firsts := map[string]bool{}
	for range 4 {
		got := answers(b.ask(t, "pool", dns.TypeA))
		if len(got) != 2 {
			t.Fatalf("pool is %v", got)
		}
		firsts[got[0]] = true
	}
	if len(firsts) != 2 {
		t.Errorf("answers are not turned: %v", firsts)
	}
	for _, addr := range []string{a.addr4(), a.addr6()} {
		arpa, err := dns.ReverseAddr(addr)
		must(t, err)
		equal(t, arpa, answers(b.ask(t, arpa, dns.TypePTR)), []string{"Alpha.bridge."})
	}
	tcp, err := query(b.ns, net.JoinHostPort(b.Endpoints[0].Gateway6, "53"), "tcp", "alpha", dns.TypeA)
	must(t, err)
	equal(t, "by TCP and IPv6", answers(tcp), []string{a.addr4()})

	// From outside nobody answers.
	if _, err := query(m.outside, hostAddr4+":53", "udp", "alpha", dns.TypeA); err == nil {
		t.Error("an open resolver")
	}
}

func TestUpstream(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	a := m.box(t, s, "a", spec.NetworkChoice{})
	start := time.Now()
	if got := a.ask(t, "example.org", dns.TypeA); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("dead server: %v", got)
	}
	if took := time.Since(start); took > upstreamTotal+10*time.Second {
		t.Errorf("SERVFAIL took %v", took)
	}
	serve := func(ns, addr, answer string) {
		in(t, ns, func() error {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			server := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
				rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A " + answer)
				reply := new(dns.Msg).SetReply(q)
				reply.Answer = []dns.RR{rr}
				_ = w.WriteMsg(reply)
			})}
			go func() { _ = server.ActivateAndServe() }()
			t.Cleanup(func() { _ = c.Close() })
			return nil
		})
	}
	serve(m.outside, outsideAddr4+":53", "192.0.2.1")
	serve(m.host, "127.0.0.53:53", "192.0.2.2")
	equal(t, "by the host's server", answers(a.ask(t, "example.org", dns.TypeA)), []string{"192.0.2.1"})
	write(t, m.resolv, "nameserver 127.0.0.53\n")
	s.upstream.mu.Lock()
	s.upstream.looked = time.Time{}
	s.upstream.mu.Unlock()
	equal(t, "by the host's new, local server", answers(a.ask(t, "example.org", dns.TypeA)), []string{"192.0.2.2"})
	own := m.box(t, s, "own", spec.NetworkChoice{DNS: []string{outsideAddr4}})
	equal(t, "by the container's own server", answers(own.ask(t, "example.org", dns.TypeA)), []string{"192.0.2.1"})
}

// Something on the host has port 53 of every address.
func TestPort53Taken(t *testing.T) {
	m := newMachine(t)
	in(t, m.host, func() error {
		u, err := net.ListenPacket("udp", ":53")
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", ":53")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _, _ = u.Close(), l.Close() })
		return nil
	})
	s := m.open(t)
	a, b := m.box(t, s, "a", spec.NetworkChoice{}), m.box(t, s, "b", spec.NetworkChoice{})
	equal(t, "name", answers(b.ask(t, "a", dns.TypeA)), []string{a.addr4()})
	for _, gateway := range []string{b.Endpoints[0].Gateway4, b.Endpoints[0].Gateway6} {
		tcp, err := query(b.ns, net.JoinHostPort(gateway, "53"), "tcp", "a", dns.TypeA)
		must(t, err)
		equal(t, "by TCP", answers(tcp), []string{a.addr4()})
	}
}

func TestPublishAll(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	req := m.request(t, s, "web", spec.NetworkChoice{PublishAll: true, Exposed: []spec.Exposed{"90-91/udp"}, Ports: []spec.PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	req.Exposed = []spec.Exposed{"80/tcp", "81", "81/tcp"}
	a, err := s.Attach(t.Context(), req)
	must(t, err)
	var got []string
	for _, p := range a.Ports {
		got = append(got, strconv.Itoa(int(p.ContainerPort))+"/"+p.Protocol)
		if p.HostPort == 0 {
			t.Errorf("no host port: %+v", p)
		}
	}
	slices.Sort(got)
	equal(t, "published", strings.Join(got, " "), "80/tcp 81/tcp 90/udp 91/udp")
	req.Exposed = []spec.Exposed{"x"}
	_, err = s.Attach(t.Context(), req)
	wantKind(t, err, errs.Invalid, `"x"`)
}
