package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"berth/base/errs"
	"berth/spec"
)

// DefaultPools give subnets of 4,094 addresses. IPv6 subnets come from a
// prefix of the node's own, made up once as RFC 4193 asks.
func DefaultPools() []Pool {
	return []Pool{
		{netip.MustParsePrefix("172.24.0.0/13"), 20},
		{netip.MustParsePrefix("10.224.0.0/12"), 20},
	}
}

// subnet is a range of addresses of a network, checked.
type subnet struct {
	prefix  netip.Prefix
	gateway netip.Addr
	pool    netip.Prefix // within prefix: what is given out
}

func (n subnet) is4() bool { return n.prefix.Addr().Is4() }

// parseSubnet checks what a user asks for and fills in the gateway.
func parseSubnet(want spec.Subnet) (subnet, error) {
	prefix, err := netip.ParsePrefix(want.Subnet)
	if err != nil {
		return subnet{}, errs.New(errs.Invalid, "subnet %q: want an address and a length, as in 10.1.0.0/24", want.Subnet)
	}
	if prefix.Addr().Is4In6() || prefix.Masked() != prefix {
		return subnet{}, errs.New(errs.Invalid, "subnet %s has bits set behind its length; did you mean %s?", prefix, prefix.Masked())
	}
	if a := prefix.Addr(); a.IsMulticast() || a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() && a.Is6() || a.Is4() && a.As4()[0] >= 224 {
		return subnet{}, errs.New(errs.Invalid, "subnet %s: containers cannot have such addresses", prefix)
	}
	if longest := prefix.Addr().BitLen() - 2; prefix.Bits() > longest {
		return subnet{}, errs.New(errs.Invalid, "subnet %s is too small: want /%d or larger", prefix, longest)
	}
	n := subnet{prefix: prefix, gateway: prefix.Addr().Next(), pool: prefix}
	if want.Gateway != "" {
		n.gateway, err = netip.ParseAddr(want.Gateway)
		if err != nil || !n.usable(n.gateway) {
			return subnet{}, errs.New(errs.Invalid, "gateway %q is not an address of subnet %s", want.Gateway, prefix)
		}
	}
	if want.Range != "" {
		n.pool, err = netip.ParsePrefix(want.Range)
		if err != nil || n.pool.Masked() != n.pool || n.pool.Bits() < prefix.Bits() || !prefix.Contains(n.pool.Addr()) {
			return subnet{}, errs.New(errs.Invalid, "range %q is not a part of subnet %s", want.Range, prefix)
		}
	}
	return n, nil
}

func (n subnet) spec() spec.Subnet {
	out := spec.Subnet{Subnet: n.prefix.String(), Gateway: n.gateway.String()}
	if n.pool != n.prefix {
		out.Range = n.pool.String()
	}
	return out
}

// usable says whether a machine on the subnet can have the address: not the
// subnet's own, and not the broadcast address.
func (n subnet) usable(a netip.Addr) bool {
	if !n.prefix.Contains(a) || a == n.prefix.Addr() || a.Zone() != "" {
		return false
	}
	return a.Is6() || n.prefix.Contains(a.Next())
}

// next gives the address after the one given out last that is not taken, so
// that an address rests as long as can be before it is used again.
func (n subnet) next(last netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	const tries = 1 << 17 // more than any node has containers
	a := last
	if !a.IsValid() {
		a = n.pool.Addr()
	}
	start := a
	for range tries {
		a = a.Next()
		if !a.IsValid() || !n.pool.Contains(a) {
			a = n.pool.Addr()
		}
		if n.usable(a) && a != n.gateway && !taken(a) {
			return a, nil
		}
		if a == start {
			break
		}
	}
	return netip.Addr{}, errs.New(errs.Exhausted, "no address is free in %s", n.pool)
}

// chooseSubnets checks the subnets asked for and adds those that are missing:
// IPv4 always, IPv6 when it is wanted. The caller holds the pools' lock.
func (s *Set) chooseSubnets(ctx context.Context, cfg spec.NetworkConfig) ([]subnet, error) {
	inUse, err := s.prefixesInUse()
	if err != nil {
		return nil, err
	}
	var chosen []subnet
	has4, has6 := false, false
	for _, want := range cfg.Subnets {
		n, err := parseSubnet(want)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(inUse, n.prefix.Overlaps); i >= 0 {
			return nil, errs.New(errs.Conflict, "subnet %s overlaps %s, which this host already uses", n.prefix, inUse[i])
		}
		if has := &has4; n.is4() && *has || !n.is4() && has6 {
			return nil, errs.New(errs.Invalid, "subnet %s: a network has one subnet of each address family", n.prefix)
		}
		has4, has6 = has4 || n.is4(), has6 || !n.is4()
		chosen = append(chosen, n)
	}
	if !has4 {
		n, err := freeSubnet(s.cfg.Pools, inUse)
		if err != nil {
			return nil, err
		}
		chosen = slices.Insert(chosen, 0, n)
	}
	if cfg.IPv6 && !has6 {
		ula, err := s.ula(ctx)
		if err != nil {
			return nil, err
		}
		n, err := freeSubnet([]Pool{{ula, 64}}, inUse)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, n)
	}
	slices.SortStableFunc(chosen, func(a, b subnet) int { return a.prefix.Addr().BitLen() - b.prefix.Addr().BitLen() })
	return chosen, nil
}

// freeSubnet cuts the first subnet from pools that overlaps nothing in use.
func freeSubnet(pools []Pool, inUse []netip.Prefix) (subnet, error) {
	for _, pool := range pools {
		candidate := netip.PrefixFrom(pool.Base.Addr(), pool.Size)
		for pool.Base.Contains(candidate.Addr()) {
			i := slices.IndexFunc(inUse, candidate.Overlaps)
			if i < 0 {
				return parseSubnet(spec.Subnet{Subnet: candidate.String()})
			}
			after := lastOf(candidate)
			if used := lastOf(inUse[i]); after.Less(used) {
				after = used // jump over a larger one at once
			}
			next := after.Next()
			if !next.IsValid() {
				break
			}
			candidate = netip.PrefixFrom(next, pool.Size)
		}
	}
	return subnet{}, errs.New(errs.Exhausted, "every subnet of the address pools is in use: give one with --subnet, or give the node larger pools")
}

// lastOf is the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		switch free := (i+1)*8 - p.Bits(); {
		case free >= 8:
			b[i] = 0xff
		case free > 0:
			b[i] |= 1<<free - 1
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// prefixesInUse are the subnets that the host routes or has addresses in,
// and those of networks whose bridges may be missing just now.
func (s *Set) prefixesInUse() ([]netip.Prefix, error) {
	routes, err := s.host.links.RouteList(nil, familyAll)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var inUse []netip.Prefix
	add := func(p netip.Prefix, ok bool) {
		if ok && p.Bits() > 0 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			inUse = append(inUse, p.Masked())
		}
	}
	for _, r := range routes {
		add(prefixOf(r.Dst))
	}
	addrs, err := s.host.links.AddrList(nil, familyAll)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(prefixOf(a.IPNet))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.networks {
		for _, sub := range n.subnets {
			inUse = append(inUse, sub.prefix)
		}
	}
	return inUse, nil
}
