package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// vethPrefix begins the names of host ends.
const vethPrefix = "bv"

// outsideName is made from who is joined to what, so that joining twice
// cannot leave two links.
func outsideName(container, network string) string {
	sum := sha256.Sum256([]byte(container + " " + network))
	return vethPrefix + hex.EncodeToString(sum[:6])
}

// addressMAC goes with an IPv4 address: who inherits the address of a
// container that is gone inherits its MAC, and nobody's table is stale.
func addressMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return append(net.HardwareAddr{0x02, 0xbe}, b[:]...)
}

func parseMAC(text string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return nil, errs.New(errs.Invalid, "%q is not the MAC address of a machine", text)
	}
	return mac, nil
}

// plug makes the veth pair of an endpoint: one end on the bridge, the other
// in the container's namespace, with its addresses.
func (s *Set) plug(ctx context.Context, n *network, namespace string, e *endpoint) error {
	ns, err := os.Open(namespace)
	if err != nil {
		return errs.New(errs.Conflict, "the container's network namespace is gone: %w", err)
	}
	defer ns.Close()
	mac, err := net.ParseMAC(e.mac)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = e.outside
	attrs.MTU = n.mtu()
	attrs.MasterIndex = n.index
	attrs.Flags = net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: e.inside, PeerMTU: uint32(n.mtu()),
		PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(ns.Fd()),
	}
	err = s.unplugger.await(ctx, e.outside)
	if err == nil {
		err = s.addVeth(veth)
	}
	if err != nil {
		return fmt.Errorf("make veth pair: %w", err)
	}
	err = inNamespace(ns, func() error { return configure(e, n.config.IPv6) })
	if err == nil {
		err = s.awaitLinks(ctx, veth.Index, n.index)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("set up %s: %w", e.inside, err), s.host.links.LinkDel(veth))
	}
	return err
}

// awaitLinks waits until links carry packets, which the kernel decides a
// little after they are up; the first words of a container would be lost.
// Should it take long, they may be.
func (s *Set) awaitLinks(ctx context.Context, indexes ...int) error {
	for _, index := range indexes {
		for range 50 {
			link, err := s.host.links.LinkByIndex(index)
			if err != nil {
				return fmt.Errorf("look at a link: %w", err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
			if !pause(ctx, time.Millisecond) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// addVeth replaces a pair that an interrupted attempt left.
func (s *Set) addVeth(veth *netlink.Veth) error {
	err := s.host.links.LinkAdd(veth)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	old, lookErr := s.host.links.LinkByName(veth.Name)
	if lookErr != nil {
		return err // it is the inside that exists
	}
	if err := s.host.links.LinkDel(old); err != nil {
		return err
	}
	return s.host.links.LinkAdd(veth)
}

// configure gives the container's end its addresses. It runs in the
// container's namespace, with the routes left to setRoutes.
func configure(e *endpoint, ipv6 bool) error {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer links.Close()
	link, err := links.LinkByName(e.inside)
	if err != nil {
		return err
	}
	// A neighbour must not be able to make itself the router: no
	// advertisements are taken, and IPv6 is off where the network has none.
	name, value := "accept_ra", "0"
	if !ipv6 {
		name, value = "disable_ipv6", "1"
	}
	if _, err := sysctl("net/ipv6/conf/"+e.inside+"/"+name, value); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, p := range e.addrs {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // leases are unique already
		}
		if err := links.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return links.LinkSetUp(link)
}

// hairpin lets a container that publishes ports reach them itself, by the
// host's address, where br_netfilter translates before the bridge forwards:
// the packet leaves by the port that it came in by.
func (s *Set) hairpin(a *attachment) error {
	if len(a.ports) == 0 {
		return nil
	}
	for _, e := range a.endpoints {
		if e.cni {
			continue
		}
		if err := s.turnBack(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) turnBack(e *endpoint) error {
	link, err := s.host.links.LinkByName(e.outside)
	if err == nil {
		err = s.host.links.LinkSetHairpin(link, true)
	}
	if err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", e.outside, err)
	}
	return nil
}

// setRoutes points the default routes of a namespace at the first endpoint
// that leads anywhere.
func setRoutes(namespace string, endpoints []*endpoint) error {
	ns, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	return inNamespace(ns, func() error {
		links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer links.Close()
		for _, v6 := range []bool{false, true} {
			if err := setDefault(links, endpoints, v6); err != nil {
				return err
			}
		}
		return nil
	})
}

func setDefault(links *netlink.Handle, endpoints []*endpoint, v6 bool) error {
	for _, e := range endpoints {
		if e.cni || !e.routed {
			continue
		}
		for _, gate := range e.gates {
			if gate.Is6() != v6 {
				continue
			}
			link, err := links.LinkByName(e.inside)
			if err != nil {
				return err
			}
			everything := ipNet(netip.PrefixFrom(zero(gate), 0))
			err = links.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gate.AsSlice(), Dst: everything})
			if err != nil {
				return fmt.Errorf("set default route by %s: %w", gate, err)
			}
			return nil
		}
	}
	return nil
}

// plugged says whether an endpoint's link stands, in that namespace.
func (s *Set) plugged(namespace string, e *endpoint) bool {
	ns, err := os.Open(namespace)
	if err != nil {
		return false
	}
	defer ns.Close()
	outside, err := s.host.links.LinkByName(e.outside)
	if err != nil {
		return false
	}
	stands := false
	_ = inNamespace(ns, func() error { // an error means no
		inside, err := netlink.LinkByName(e.inside)
		stands = err == nil && inside.Attrs().ParentIndex == outside.Attrs().Index
		return err
	})
	return stands
}

func (s *Set) deleteLink(name string) error { return s.host.deleteLinks([]string{name}) }
