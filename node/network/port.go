package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/undo"
	"berth/spec"
)

// wantedPorts checks the published ports, adds those of PublishAll, and
// splits ranges that leave the host's ports open.
func wantedPorts(choice spec.NetworkChoice, exposed []spec.Exposed) ([]spec.PortMapping, error) {
	var ports []spec.PortMapping
	for _, p := range choice.Ports {
		if err := checkPort(&p); err != nil {
			return nil, err
		}
		if p.HostPort != 0 || p.Range == 1 {
			ports = append(ports, p)
			continue
		}
		for i := range p.Range {
			one := p
			one.ContainerPort, one.Range = p.ContainerPort+i, 1
			ports = append(ports, one)
		}
	}
	if !choice.PublishAll {
		return ports, nil
	}
	explicit := len(ports)
	for _, e := range slices.Concat(exposed, choice.Exposed) {
		p, err := parseExposed(e)
		if err != nil {
			return nil, err
		}
		for i := range p.Range {
			one := p
			one.ContainerPort, one.Range = p.ContainerPort+i, 1
			if !covers(ports[:explicit], one) && !slices.Contains(ports, one) {
				ports = append(ports, one)
			}
		}
	}
	return ports, nil
}

func checkPort(p *spec.PortMapping) error {
	if p.Protocol == "" {
		p.Protocol = "tcp"
	}
	p.Protocol = strings.ToLower(p.Protocol)
	p.Range = max(p.Range, 1)
	if _, err := protocolNumber(p.Protocol); err != nil {
		return errs.New(errs.Invalid, "protocol %q of a published port: %w", p.Protocol, err)
	}
	if p.HostIP != "" {
		a, err := netip.ParseAddr(p.HostIP)
		if err != nil || a.Zone() != "" {
			return errs.New(errs.Invalid, "%q is not an address to publish a port on", p.HostIP)
		}
		p.HostIP = a.Unmap().String()
	}
	last := uint32(p.Range) - 1
	switch {
	case p.ContainerPort == 0:
		return errs.New(errs.Invalid, "a published port of the container is from 1 to 65535")
	case uint32(p.ContainerPort)+last > 65535 || uint32(p.HostPort)+last > 65535:
		return errs.New(errs.Invalid, "%d ports from %d on do not fit below 65536", p.Range, max(p.HostPort, p.ContainerPort))
	}
	return nil
}

// parseExposed reads 80, 80/tcp or 8000-8010/udp.
func parseExposed(e spec.Exposed) (spec.PortMapping, error) {
	ports, protocol, _ := strings.Cut(string(e), "/")
	from, to, isRange := strings.Cut(ports, "-")
	if !isRange {
		to = from
	}
	first, err1 := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	if err1 != nil || err2 != nil || first > last || last-first == 65535 {
		return spec.PortMapping{}, errs.New(errs.Invalid, "exposed port %q: want a port or a range, as in 80/tcp", e)
	}
	p := spec.PortMapping{ContainerPort: uint16(first), Range: uint16(last-first) + 1, Protocol: protocol}
	return p, checkPort(&p)
}

func covers(ports []spec.PortMapping, one spec.PortMapping) bool {
	return slices.ContainsFunc(ports, func(p spec.PortMapping) bool {
		return p.Protocol == one.Protocol && one.ContainerPort >= p.ContainerPort && one.ContainerPort-p.ContainerPort < p.Range
	})
}

// forwards are the rules that publish a container's ports. They lead to the
// first network that has a way out; where that is a CNI network its plugins
// have published them already.
func (s *Set) forwards(a *attachment) []forward {
	var list []forward
	for _, v6 := range []bool{false, true} {
		e, to := primary(a, v6)
		if e == nil || e.cni {
			continue
		}
		for _, p := range a.ports {
			from := zero(to)
			if p.HostIP != "" {
				from, _ = netip.ParseAddr(p.HostIP) // checked when it came in
			}
			if from.Is6() != v6 || from == netip.IPv6Loopback() {
				continue
			}
			proto, _ := protocolNumber(p.Protocol)
			for i := range p.Range {
				list = append(list, forward{proto, netip.AddrPortFrom(from, p.HostPort+i), netip.AddrPortFrom(to, p.ContainerPort+i)})
			}
		}
	}
	return list
}

// primary is where published ports lead.
func primary(a *attachment, v6 bool) (*endpoint, netip.Addr) {
	for _, e := range a.endpoints {
		if to, ok := e.addr(v6); ok && e.routed {
			return e, to
		}
	}
	return nil, netip.Addr{}
}

// hold takes the ports on the host for a container and chooses those that
// were left open.
func (s *Set) hold(ctx context.Context, a *attachment, ports []spec.PortMapping, u *undo.Stack) ([]spec.PortMapping, error) {
	u.Add("ports", func(context.Context) error { s.letGo(a.container); return nil })
	chosen := make([]spec.PortMapping, 0, len(ports))
	for _, p := range ports {
		for i := range p.Range {
			h, err := s.newHolder(ctx, a.container, p, i)
			if err != nil {
				return nil, s.explain(err, p, p.HostPort+i, a.container)
			}
			if p.HostPort == 0 {
				p.HostPort = h.port
			}
			s.mu.Lock()
			s.holders[a.container] = append(s.holders[a.container], h)
			s.mu.Unlock()
			h.serve(s)
		}
		chosen = append(chosen, p)
	}
	return chosen, nil
}

// holdAgain takes the ports of a container that was attached before the node
// started. Rules lead there already: a port that somebody took meanwhile is
// not worth a failed start.
func (s *Set) holdAgain(ctx context.Context, a *attachment) {
	for _, p := range a.ports {
		var u undo.Stack // what is held stays held
		if _, err := s.hold(ctx, a, []spec.PortMapping{p}, &u); err != nil {
			s.cfg.Log.WarnContext(ctx, "a published port cannot be held", "container", a.container, "err", err)
		}
	}
	s.aim(a)
}

// letGo frees the ports of a container.
func (s *Set) letGo(container string) {
	s.mu.Lock()
	held := s.holders[container]
	delete(s.holders, container)
	s.mu.Unlock()
	for _, h := range held {
		h.close()
	}
}

// aim tells held ports where the container is now.
func (s *Set) aim(a *attachment) {
	_, to := primary(a, false)
	if !to.IsValid() {
		_, to = primary(a, true)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.holders[a.container] {
		target := netip.AddrPortFrom(to, h.inner)
		h.to.Store(&target)
	}
}

func (s *Set) explain(err error, p spec.PortMapping, port uint16, container string) error {
	where := fmt.Sprintf("%d/%s", port, p.Protocol)
	if p.HostIP != "" {
		where = net.JoinHostPort(p.HostIP, where)
	}
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return errs.New(errs.Invalid, "port %s: the host has no such address", where)
	case !errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("hold port %s: %w", where, err)
	}
	for _, other := range s.attached() {
		same := func(o spec.PortMapping) bool {
			return o.Protocol == p.Protocol && port >= o.HostPort && port-o.HostPort < o.Range
		}
		if other.container != container && slices.ContainsFunc(other.ports, same) {
			return errs.New(errs.Conflict, "port %s is in use by container %s", where, other.name)
		}
	}
	return errs.New(errs.Conflict, "port %s is in use on the host", where)
}

// newHolder binds one port of a mapping, a free one where HostPort is 0.
func (s *Set) newHolder(ctx context.Context, container string, p spec.PortMapping, i uint16) (*holder, error) {
	h := &holder{inner: p.ContainerPort + i}
	if p.HostPort != 0 {
		h.port = p.HostPort + i
	}
	if p.Protocol == "sctp" {
		return h, s.chooseSCTP(h, container)
	}
	err := s.host.do(func() error { return h.bind(ctx, p.Protocol, p.HostIP) })
	if err != nil {
		return nil, err
	}
	return h, nil
}

// chooseSCTP looks through our own ports only: kernels seldom have SCTP
// sockets to hold one with, and rules do not need them.
func (s *Set) chooseSCTP(h *holder, container string) error {
	taken := map[uint16]bool{}
	for _, a := range s.attached() {
		for _, f := range s.forwards(a) {
			if f.proto == unix.IPPROTO_SCTP && a.container != container {
				taken[f.from.Port()] = true
			}
		}
	}
	if h.port == 0 {
		for h.port = 32768; taken[h.port]; {
			h.port = 32768 + uint16(rand.N(28000))
		}
	}
	if taken[h.port] {
		return syscall.EADDRINUSE
	}
	return nil
}
