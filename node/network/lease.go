package network

import (
	"context"
	"net/netip"

	"berth/base/errs"
)

// leaseAll takes an address in every subnet of n for a container: those
// asked for, else those in prefer if they are free, else the next free ones.
// An address whose last link is still being removed is waited for.
func (s *Set) leaseAll(ctx context.Context, n *network, container string, want, prefer []netip.Addr) ([]netip.Prefix, error) {
	for {
		addrs, wait, err := s.tryLease(n, container, want, prefer)
		if err != nil || wait == nil {
			return addrs, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tryLease takes all or none. A channel says what to wait for.
func (s *Set) tryLease(n *network, container string, want, prefer []netip.Addr) ([]netip.Prefix, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.gone {
		return nil, nil, errs.New(errs.NotFound, "network %s is being removed", n.config.Name)
	}
	if err := n.fits(want); err != nil {
		return nil, nil, err
	}
	var taken []netip.Prefix
	for i := range n.subnets {
		addr, wait, err := n.pick(i, want, prefer)
		if err != nil || wait != nil {
			for _, p := range taken {
				delete(n.leases, p.Addr())
			}
			return nil, wait, err
		}
		n.leases[addr] = &lease{container: container, link: outsideName(container, n.id)}
		taken = append(taken, netip.PrefixFrom(addr, n.subnets[i].prefix.Bits()))
	}
	return taken, nil, nil
}

// pick finds the address in one subnet.
func (n *network) pick(i int, want, prefer []netip.Addr) (netip.Addr, <-chan struct{}, error) {
	sub := n.subnets[i]
	for _, a := range want {
		if !sub.prefix.Contains(a) {
			continue
		}
		if held, ok := n.leases[a]; ok {
			if held.released != nil {
				return a, held.released, nil
			}
			return a, nil, errs.New(errs.Conflict, "address %s is in use by container %.12s", a, held.container)
		}
		return a, nil, nil
	}
	for _, a := range prefer {
		if sub.usable(a) && a != sub.gateway {
			held, ok := n.leases[a]
			switch {
			case !ok:
				return a, nil, nil
			case held.released != nil:
				return a, held.released, nil
			}
		}
	}
	a, err := sub.next(n.last[i], func(a netip.Addr) bool { return n.leases[a] != nil })
	if err == nil {
		n.last[i] = a
	} else {
		for a, held := range n.leases { // one that is about to be free will do
			if held.released != nil && sub.pool.Contains(a) {
				return a, held.released, nil
			}
		}
	}
	return a, nil, err
}

// fits checks addresses asked for.
func (n *network) fits(want []netip.Addr) error {
	for _, a := range want {
		ok := false
		for _, sub := range n.subnets {
			if a == sub.gateway {
				return errs.New(errs.Conflict, "address %s is the gateway of network %s", a, n.config.Name)
			}
			ok = ok || sub.usable(a)
		}
		if !ok {
			return errs.New(errs.Invalid, "address %s is not one of network %s", a, n.config.Name)
		}
	}
	return nil
}

// retire marks the addresses of a link that is being removed. The returned
// function frees them.
func (s *Set) retire(e *endpoint) (free func()) {
	released := make(chan struct{})
	s.mu.Lock()
	n := s.networks[e.network]
	if n != nil {
		for _, p := range e.addrs {
			if held := n.leases[p.Addr()]; held != nil {
				held.released = released
			}
		}
	}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n != nil {
			for _, p := range e.addrs {
				if held := n.leases[p.Addr()]; held != nil && held.released == released {
					delete(n.leases, p.Addr())
				}
			}
		}
		close(released)
	}
}
