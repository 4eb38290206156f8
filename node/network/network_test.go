package network

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

// machine is a network namespace that plays the host, so that the real one is
// never touched, and a namespace outside of it.
type machine struct {
	host, outside string
	dir           string
	resolv        string
}

// Addresses between the machine and the outside.
const (
	hostAddr4, outsideAddr4 = "203.0.113.1", "203.0.113.2"
	hostAddr6, outsideAddr6 = "2001:db8::1", "2001:db8::2"
)

func newMachine(t testing.TB) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	m := &machine{dir: t.TempDir()}
	m.host, m.outside, m.resolv = filepath.Join(m.dir, "host"), filepath.Join(m.dir, "outside"), filepath.Join(m.dir, "resolv.conf")
	write(t, m.resolv, "nameserver "+outsideAddr4+"\nsearch example.org\noptions ndots:1\n")
	for _, ns := range []string{m.host, m.outside} {
		write(t, ns, "")
		must(t, makeNamespace(ns))
		t.Cleanup(func() { must(t, unix.Unmount(ns, unix.MNT_DETACH)) })
	}
	outside, err := os.Open(m.outside)
	must(t, err)
	defer outside.Close()
	in(t, m.host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "up0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up1", PeerNamespace: netlink.NsFd(outside.Fd())}); err != nil {
			return err
		}
		return address("up0", hostAddr4+"/24", hostAddr6+"/64")
	})
	in(t, m.outside, func() error { return address("up1", outsideAddr4+"/24", outsideAddr6+"/64") })
	for ns, link := range map[string]string{m.host: "up0", m.outside: "up1"} {
		in(t, ns, func() error {
			for {
				l, err := netlink.LinkByName(link)
				if err != nil || l.Attrs().OperState == netlink.OperUp {
					return err
				}
				<-time.After(time.Millisecond)
			}
		})
	}
	return m
}

func address(link string, addrs ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, text := range addrs {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	if _, err := sysctl("net/ipv6/conf/"+link+"/accept_dad", "0"); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// open starts a Set on the machine; each call after a close is a restart.
func (m *machine) open(t testing.TB, change ...func(*Config)) *Set {
	t.Helper()
	db, err := kv.Open(filepath.Join(m.dir, "db"))
	must(t, err)
	cfg := Config{DB: db, State: filepath.Join(m.dir, "state"), HostNS: m.host, ResolvConf: m.resolv, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	for _, c := range change {
		c(&cfg)
	}
	s, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { closeSet(t, s) })
	return s
}

func closeSet(t testing.TB, s *Set) {
	t.Helper()
	must(t, s.Close())
	must(t, s.cfg.DB.Close())
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// box is a container: a namespace on networks.
type box struct {
	Attachment
	id, ns string
}

func (m *machine) request(t testing.TB, s *Set, name string, choice spec.NetworkChoice) AttachRequest {
	t.Helper()
	id := fmt.Sprintf("%x", name) + strings.Repeat("0", 64-2*len(name))
	ns, err := s.NewNamespace(t.Context(), id)
	must(t, err)
	t.Cleanup(func() {
		if isNamespace(ns) {
			must(t, unix.Unmount(ns, unix.MNT_DETACH))
		}
	})
	return AttachRequest{Container: id, Name: name, Hostname: name, Namespace: ns, Choice: choice}
}

func (m *machine) box(t testing.TB, s *Set, name string, choice spec.NetworkChoice) *box {
	t.Helper()
	req := m.request(t, s, name, choice)
	a, err := s.Attach(t.Context(), req)
	must(t, err)
	return &box{a, req.Container, req.Namespace}
}

func (b *box) addr4() string { return addrOf(b.Endpoints[0].IPv4) }
func (b *box) addr6() string { return addrOf(b.Endpoints[0].IPv6) }

func addrOf(prefix string) string {
	a, _, _ := strings.Cut(prefix, "/")
	return a
}

func in(t testing.TB, ns string, fn func() error) {
	t.Helper()
	must(t, runIn(ns, fn))
}

func runIn(ns string, fn func() error) error {
	f, err := os.Open(ns)
	if err != nil {
		return err
	}
	defer f.Close()
	return inNamespace(f, fn)
}

// echo answers each connection or packet in ns with who asked.
func echo(t testing.TB, ns, network string, port int) {
	t.Helper()
	where := ":" + strconv.Itoa(port)
	in(t, ns, func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, where)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			go func() {
				b := make([]byte, 1500)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(from.String()), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, where)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, c.RemoteAddr().String())
				_ = c.Close()
			}
		}()
		return nil
	})
}

// call connects from ns and returns what the echo said: our address as seen
// there.
func call(ns, network, address string, patience time.Duration) (seen string, err error) {
	err = runIn(ns, func() error {
		c, err := net.DialTimeout(network, address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if strings.HasPrefix(network, "udp") {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		b := make([]byte, 200)
		n, err := c.Read(b)
		seen = string(b[:n])
		return err
	})
	return seen, err
}

func reaches(t testing.TB, what, ns, network, address string) string {
	t.Helper()
	start := time.Now()
	seen, err := call(ns, network, address, 30*time.Second)
	if took := time.Since(start); took > 300*time.Millisecond {
		t.Logf("%s: %s %s took %v", what, network, address, took)
	}
	if err != nil {
		t.Errorf("%s: %s %s: %v", what, network, address, err)
	}
	host, _, _ := net.SplitHostPort(seen)
	return host
}

func blocked(t testing.TB, what, ns, network, address string) {
	t.Helper()
	if seen, err := call(ns, network, address, 300*time.Millisecond); err == nil {
		t.Errorf("%s: %s %s answered (seen as %s)", what, network, address, seen)
	}
}

// ask asks the name server of b as b.
func (b *box) ask(t testing.TB, name string, qtype uint16) *dns.Msg {
	t.Helper()
	reply, err := query(b.ns, net.JoinHostPort(b.Endpoints[0].Gateway4, "53"), "udp", name, qtype)
	must(t, err)
	return reply
}

func query(ns, server, network, name string, qtype uint16) (reply *dns.Msg, err error) {
	err = runIn(ns, func() error {
		c, err := net.DialTimeout(network, server, 4*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		client := &dns.Client{Net: network, Timeout: 6 * time.Second}
		reply, _, err = client.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype), &dns.Conn{Conn: c})
		return err
	})
	return reply, err
}

func answers(m *dns.Msg) []string {
	var list []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			list = append(list, rr.A.String())
		case *dns.AAAA:
			list = append(list, rr.AAAA.String())
		case *dns.PTR:
			list = append(list, rr.Ptr)
		}
	}
	return list
}

// traces lists what is on the machine: links, rules and namespaces.
func (m *machine) traces(t testing.TB, s *Set) []string {
	t.Helper()
	var list []string
	in(t, m.host, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			list = append(list, "link "+l.Attrs().Name)
		}
		c, nftErr := nftables.New()
		if nftErr != nil {
			return nftErr
		}
		sets, setErr := c.GetSets(s.firewall.table)
		if setErr != nil && strings.Contains(setErr.Error(), unix.ENOENT.Error()) {
			setErr = nil // the table is gone
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				return err
			}
			for _, e := range elements {
				list = append(list, fmt.Sprintf("element %s %x", set.Name, e.Key))
			}
		}
		chains, chainErr := c.ListChains()
		for _, chain := range chains {
			rules, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			list = append(list, fmt.Sprintf("chain %s %s: %d rules", chain.Table.Name, chain.Name, len(rules)))
		}
		return errors.Join(err, setErr, chainErr)
	})
	files, _ := os.ReadDir(filepath.Join(s.cfg.State, "netns"))
	for _, f := range files {
		list = append(list, "namespace "+f.Name())
	}
	slices.Sort(list)
	return list
}

// settle waits for what is removed in the background.
func (s *Set) settle(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for leasesLeft(s) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("addresses stay leased")
		}
		<-time.After(5 * time.Millisecond)
	}
}

// removeForward deletes a chain, as people do by hand.
func (fw *firewall) removeForward() error {
	return fw.host.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		chain := &nftables.Chain{Table: fw.table, Name: chainForward}
		c.FlushChain(chain)
		c.DelChain(chain)
		return c.Flush()
	})
}

// rulesBack waits until the rules that somebody deleted stand again.
func (s *Set) rulesBack(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		stands, err := s.firewall.stands()
		must(t, err)
		if stands {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the rules stay away")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func leasesLeft(s *Set) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := 0
	for _, n := range s.networks {
		for _, l := range n.leases {
			if l.released != nil {
				left++
			}
		}
	}
	return left
}

func write(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, kind errs.Kind, text string) {
	t.Helper()
	if errs.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %q (%v), want %q with %q", errs.KindOf(err), err, kind, text)
	}
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}
