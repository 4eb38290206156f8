package network

import (
	"strings"
	"testing"

	"berth/base/errs"
	"berth/spec"
)

func TestResolvConf(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	_, err := s.Create(t.Context(), spec.NetworkConfig{Name: "inner", Internal: true})
	must(t, err)
	onBridge := []spec.Endpoint{{Network: Bridge, Gateway4: "172.24.0.1"}}
	onCNI := []spec.Endpoint{{Network: "foreign", Gateway4: "10.0.0.1"}}
	for _, c := range []struct {
		choice spec.NetworkChoice
		on     []spec.Endpoint
		want   string
	}{
		{spec.NetworkChoice{}, onBridge, "nameserver 172.24.0.1\nsearch example.org\noptions ndots:1\n"},
		{spec.NetworkChoice{DNS: []string{"9.9.9.9"}, DNSSearch: []string{"a.b", "c"}, DNSOptions: []string{"timeout:1"}}, onBridge, "nameserver 172.24.0.1\nsearch a.b c\noptions timeout:1\n"},
		{spec.NetworkChoice{DNSSearch: []string{"."}}, onBridge, "nameserver 172.24.0.1\noptions ndots:1\n"},
		{spec.NetworkChoice{}, onCNI, "nameserver 203.0.113.2\nsearch example.org\noptions ndots:1\n"},
		{spec.NetworkChoice{Mode: Host}, nil, "nameserver 203.0.113.2\nsearch example.org\noptions ndots:1\n"},
		{spec.NetworkChoice{Mode: Host, DNS: []string{"9.9.9.9"}}, nil, "nameserver 9.9.9.9\nsearch example.org\noptions ndots:1\n"},
		{spec.NetworkChoice{Mode: None}, nil, "nameserver 203.0.113.2\nsearch example.org\noptions ndots:1\n"},
	} {
		equal(t, "resolv.conf", string(s.ResolvConf(c.choice, c.on)), c.want)
	}

	choice := spec.NetworkChoice{ExtraHosts: []string{"db:10.0.0.7", "six:[fd00::7]", "host=host-gateway", "evil\n:1.2.3.4", "nothing"}}
	hosts := string(s.Hosts(choice, "web", "example.org", []spec.Endpoint{{Network: Bridge, IPv4: "172.24.0.2/20", IPv6: "fd00::2/64", Gateway4: "172.24.0.1"}}))
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.0.0.7\tdb\n", "fd00::7\tsix\n", "172.24.0.1\thost\n", "172.24.0.2\tweb.example.org web\n", "fd00::2\tweb.example.org web\n"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("hosts lacks %q:\n%s", want, hosts)
		}
	}
	if strings.Contains(hosts, "1.2.3.4") {
		t.Errorf("a name broke out:\n%s", hosts)
	}
	if host := string(s.Hosts(spec.NetworkChoice{Mode: Host, ExtraHosts: []string{"me:host-gateway"}}, "web", "", nil)); !strings.HasSuffix(host, "127.0.0.1\tme\n") {
		t.Errorf("hosts in the host's namespace:\n%s", host)
	}
}

func TestCheckChoice(t *testing.T) {
	port := func(p spec.PortMapping) spec.NetworkChoice { return spec.NetworkChoice{Ports: []spec.PortMapping{p}} }
	for _, bad := range []spec.NetworkChoice{
		port(spec.PortMapping{}), port(spec.PortMapping{ContainerPort: 1, Protocol: "icmp"}), port(spec.PortMapping{ContainerPort: 1, HostIP: "nowhere"}),
		port(spec.PortMapping{ContainerPort: 1, HostIP: "fe80::1%eth0"}), port(spec.PortMapping{ContainerPort: 65535, Range: 2}), port(spec.PortMapping{ContainerPort: 1, HostPort: 65535, Range: 2}),
		{DNS: []string{"one.one"}},
		{DNSSearch: []string{"a b"}},
		{DNSOptions: []string{"a\nnameserver 6.6.6.6"}},
		{ExtraHosts: []string{"a"}},
		{ExtraHosts: []string{"a:b"}},
		{Endpoints: []spec.EndpointConfig{{IPv4: "::1"}}},
		{Endpoints: []spec.EndpointConfig{{IPv6: "1.2.3.4"}}},
		{Endpoints: []spec.EndpointConfig{{MAC: "x"}}},
	} {
		if err := CheckChoice(bad); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	must(t, CheckChoice(spec.NetworkChoice{
		Ports: []spec.PortMapping{{ContainerPort: 65535}, {ContainerPort: 1, HostPort: 1, Range: 65535, Protocol: "UDP", HostIP: "::"}},
		DNS:   []string{"::1"}, DNSSearch: []string{".", "example.org."}, DNSOptions: []string{"ndots:2"}, ExtraHosts: []string{"a:host-gateway", "b=::1"},
	}))
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.2.3.4\nnameserver ::1 # six\nsearch a b\noptions ndots:2 rotate\n"))
	f.Add([]byte("domain x\r\n;nameserver 1.1.1.1\nnameserver\nnameserver 300.1.1.1\nsearch"))
	f.Fuzz(func(t *testing.T, text []byte) {
		first := parseResolvConf(text)
		out := first.render()
		second := parseResolvConf(out)
		equal(t, "read back", string(second.render()), string(out))
		if len(first.servers) > 3 {
			t.Errorf("%d servers", len(first.servers))
		}
		for line := range strings.Lines(string(out)) {
			if word, _, _ := strings.Cut(line, " "); word != "nameserver" && word != "search" && word != "options" {
				t.Errorf("a line broke out: %q", line)
			}
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"web", "a.b", "4.3.2.1.in-addr.arpa", "1." + strings.Repeat("0.", 31) + "ip6.arpa", "x:1", "host-gateway", "8000-8010/udp", "fe80::1"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if validHostname(name) && strings.ContainsAny(name, " \t\r\n\x00#:/") {
			t.Errorf("%q is taken for a host name", name)
		}
		if networkName.MatchString(name) && strings.ContainsAny(name, "/ \n\x00:") {
			t.Errorf("%q is taken for a network's name", name)
		}
		if a, ok := reverseAddr(name); ok && !a.IsValid() {
			t.Errorf("%q gives an address that is none", name)
		}
		if p, err := parseExposed(spec.Exposed(name)); err == nil && (p.ContainerPort == 0 || p.Range == 0 || int(p.ContainerPort)+int(p.Range) > 65536) {
			t.Errorf("%q is %+v", name, p)
		}
		if _, err := parseSubnet(spec.Subnet{Subnet: name}); err != nil && errs.KindOf(err) != errs.Invalid {
			t.Errorf("subnet %q: %v", name, err)
		}
		splitExtraHost(name)
	})
}
