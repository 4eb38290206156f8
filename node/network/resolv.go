package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"berth/spec"
)

// resolvConf is what a resolv.conf says.
type resolvConf struct {
	servers []string // addresses, at most three
	search  []string
	options []string
}

// parseResolvConf reads a file as the C library does: the last search or
// domain line counts, lines it does not understand do not.
func parseResolvConf(text []byte) resolvConf {
	var c resolvConf
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		line, _, _ = strings.Cut(line, ";")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch values := fields[1:]; fields[0] {
		case "nameserver":
			if _, err := netip.ParseAddr(values[0]); err == nil && len(c.servers) < 3 {
				c.servers = append(c.servers, values[0])
			}
		case "search":
			c.search = words(values)
		case "domain":
			c.search = words(values[:1])
		case "options":
			c.options = append(c.options, words(values)...)
		}
	}
	return c
}

// words leaves out what cannot stand in a resolv.conf.
func words(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(w string) bool {
		return strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	})
}

func (c resolvConf) render() []byte {
	var b bytes.Buffer
	for _, server := range c.servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(c.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	if len(c.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.options, " "))
	}
	return b.Bytes()
}

// ResolvConf is the /etc/resolv.conf of a container. On our networks its
// server is the gateway, which knows the other containers and asks the
// servers of --dns, else the host's, about the rest. Elsewhere it is the
// host's file. --dns-search, --dns-option and --dns count everywhere.
func (s *Set) ResolvConf(choice spec.NetworkChoice, endpoints []spec.Endpoint) []byte {
	conf := s.upstream.now()
	if len(choice.DNS) > 0 {
		conf.servers = choice.DNS
	}
	if gateway := s.nameServerFor(endpoints); gateway != "" {
		conf.servers = []string{gateway}
	} else if len(choice.DNS)+len(choice.DNSSearch)+len(choice.DNSOptions) == 0 && choice.Mode == Host {
		if text, err := os.ReadFile(s.cfg.ResolvConf); err == nil {
			return text
		}
	}
	if len(choice.DNSSearch) > 0 {
		conf.search = slices.DeleteFunc(words(choice.DNSSearch), func(d string) bool { return d == "." })
	}
	if len(choice.DNSOptions) > 0 {
		conf.options = words(choice.DNSOptions)
	}
	return conf.render()
}

// nameServerFor is the first gateway that answers names.
func (s *Set) nameServerFor(endpoints []spec.Endpoint) string {
	for _, e := range endpoints {
		if _, err := s.find(e.Network); err != nil {
			continue
		}
		if e.Gateway4 != "" {
			return e.Gateway4
		}
		if e.Gateway6 != "" {
			return e.Gateway6
		}
	}
	return ""
}

// Hosts is the /etc/hosts of a container: itself, and what --add-host adds.
// In the host's namespace it is the host's file and what is added.
func (s *Set) Hosts(choice spec.NetworkChoice, hostname, domainname string, endpoints []spec.Endpoint) []byte {
	var b bytes.Buffer
	if text, err := os.ReadFile("/etc/hosts"); choice.Mode == Host && err == nil {
		b.Write(text)
		if len(text) > 0 && text[len(text)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, extra := range choice.ExtraHosts {
		name, addr, ok := splitExtraHost(extra)
		if addr == "host-gateway" {
			addr = s.hostGateway(choice, endpoints)
		}
		if a, err := netip.ParseAddr(addr); ok && err == nil && validHostname(name) {
			fmt.Fprintf(&b, "%s\t%s\n", a, name)
		}
	}
	if !validHostname(hostname) || choice.Mode == Host {
		return b.Bytes()
	}
	names := hostname
	if validHostname(domainname) {
		names = hostname + "." + domainname + " " + hostname
	}
	for _, e := range endpoints {
		for _, addr := range []string{e.IPv4, e.IPv6} {
			if p, err := netip.ParsePrefix(addr); err == nil {
				fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), names)
			}
		}
	}
	return b.Bytes()
}

// splitExtraHost takes name:address and name=address; the address may be
// IPv6, in brackets or not.
func splitExtraHost(extra string) (name, addr string, ok bool) {
	i := strings.IndexAny(extra, ":=")
	if i < 0 {
		return "", "", false
	}
	addr = strings.TrimSuffix(strings.TrimPrefix(extra[i+1:], "["), "]")
	return extra[:i], addr, true
}

// hostGateway is an address of the host that the container reaches.
func (s *Set) hostGateway(choice spec.NetworkChoice, endpoints []spec.Endpoint) string {
	if choice.Mode == Host {
		return "127.0.0.1"
	}
	if gateway := s.nameServerFor(endpoints); gateway != "" {
		return gateway
	}
	if n, err := s.find(Bridge); err == nil {
		return n.gateways()[0].String()
	}
	return ""
}

// validHostname is what may stand in a hosts file and in DNS.
func validHostname(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
				return false
			}
		}
	}
	return true
}
