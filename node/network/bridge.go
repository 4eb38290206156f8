package network

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/base/undo"
	"berth/spec"
)

// network is a bridge network in memory. Leases, last and gone are guarded by
// Set.mu; the rest does not change once it is known to the Set.
type network struct {
	id      string
	created time.Time
	config  spec.NetworkConfig // subnets and gateways filled in
	bridge  string
	index   int // of the bridge

	subnets []subnet
	leases  map[netip.Addr]*lease
	last    []netip.Addr // given out last, in each subnet
	names   *nameServer
	gone    bool // being removed: nobody may join
}

// lease is an address that is taken. released is not nil once its container
// has left; it is closed when the link is gone too.
type lease struct {
	container string
	link      string // on the host, that belongs to it
	released  chan struct{}
}

// networkRecord is how a network is kept.
type networkRecord struct {
	ID      string             `json:"id"`
	Created time.Time          `json:"created"`
	Config  spec.NetworkConfig `json:"config"`
	Bridge  string             `json:"bridge"`
}

func (r networkRecord) network() (*network, error) {
	n := &network{id: r.ID, created: r.Created, config: r.Config, bridge: r.Bridge, leases: map[netip.Addr]*lease{}, names: &nameServer{}}
	for _, want := range r.Config.Subnets {
		sub, err := parseSubnet(want)
		if err != nil {
			return nil, err
		}
		n.subnets = append(n.subnets, sub)
	}
	n.last = make([]netip.Addr, len(n.subnets))
	return n, nil
}

func (n *network) builtin() bool { return n.config.Name == Bridge }

func (n *network) zone() zone {
	z := zone{bridge: n.bridge, internal: n.config.Internal, masquerade: n.config.Options[optMasquerade] != "false", names: n.names.redirects()}
	for _, sub := range n.subnets {
		z.prefixes = append(z.prefixes, sub.prefix)
	}
	return z
}

// gateways are the bridge's own addresses.
func (n *network) gateways() []netip.Addr {
	var list []netip.Addr
	for _, sub := range n.subnets {
		list = append(list, sub.gateway)
	}
	return list
}

func (n *network) contains(a netip.Addr) bool {
	for _, sub := range n.subnets {
		if sub.prefix.Contains(a) {
			return true
		}
	}
	return false
}

// Create makes a network. It fails with errs.Invalid where the configuration
// makes no sense, errs.Exists where the name is taken, errs.Conflict where a
// subnet overlaps one of the host's, and errs.Exhausted where none is left.
func (s *Set) Create(ctx context.Context, cfg spec.NetworkConfig) (spec.Network, error) {
	if err := checkConfig(cfg); err != nil {
		return spec.Network{}, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	n, err := s.create(ctx, cfg, false)
	if err != nil {
		return spec.Network{}, fmt.Errorf("create network %s: %w", cfg.Name, err)
	}
	return s.describe(n), nil
}

func (s *Set) create(ctx context.Context, cfg spec.NetworkConfig, builtin bool) (_ *network, err error) {
	if err := s.nameFree(cfg.Name); err != nil {
		return nil, err
	}
	unlock, err := s.host.lockPools(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	subnets, err := s.chooseSubnets(ctx, cfg)
	if err != nil {
		return nil, err
	}
	cfg.Driver, cfg.Subnets, cfg.Options = Bridge, nil, plainOptions(cfg.Options)
	for _, sub := range subnets {
		cfg.Subnets = append(cfg.Subnets, sub.spec())
		cfg.IPv6 = cfg.IPv6 || !sub.is4()
	}
	record := networkRecord{ID: newID(), Created: time.Now().UTC(), Config: cfg}
	record.Bridge = s.bridgeName(record.ID, cfg, builtin)
	n, err := record.network()
	if err != nil {
		return nil, err
	}
	if err := s.freeBridge(n.bridge); err != nil {
		return nil, err
	}

	var u undo.Stack
	defer u.Run(ctx, &err)
	u.Add("bridge", func(context.Context) error { return s.lower(n) })
	if err := s.raise(ctx, n); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.networks[n.id] = n
	s.mu.Unlock()
	u.Add("rules", func(context.Context) error {
		s.mu.Lock()
		delete(s.networks, n.id)
		s.mu.Unlock()
		return s.rebuildRules()
	})
	if !builtin { // Open writes the rules once for all
		if err := s.changeZones(); err != nil {
			return nil, err
		}
	}
	err = s.cfg.DB.Update(ctx, func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, "net/"+n.id, record) })
	if err != nil {
		return nil, err
	}
	u.Forget()
	return n, nil
}

// changeZones brings the rules to the networks there are.
func (s *Set) changeZones() error {
	s.rules.Lock()
	err := s.firewall.setZones(s.zones())
	s.rules.Unlock()
	if err != nil {
		return s.rebuildRules() // somebody flushed the table
	}
	return nil
}

func (s *Set) bridgeName(id string, cfg spec.NetworkConfig, builtin bool) string {
	switch wanted := cfg.Options[optInterface]; {
	case wanted != "":
		return wanted
	case !builtin:
		return "brt-" + id[:11]
	case s.instance == "":
		return "berth0"
	}
	return "berth-" + s.instance[:min(8, len(s.instance))]
}

// alias marks the bridges of this node.
func (s *Set) alias() string { return strings.TrimSpace("berth " + s.instance) }

// raise makes the bridge of a network, or completes it if it is there.
func (s *Set) raise(ctx context.Context, n *network) error {
	link, err := s.host.links.LinkByName(n.bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		link, err = s.addBridge(n)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", n.bridge, err)
	}
	if link.Type() != "bridge" {
		return errs.New(errs.Conflict, "interface %s of the host is a %s, not a bridge", n.bridge, link.Type())
	}
	n.index = link.Attrs().Index
	if err := s.host.do(func() error { return s.bridgeSysctls(ctx, n) }); err != nil {
		return fmt.Errorf("bridge %s: %w", n.bridge, err)
	}
	for _, sub := range n.subnets {
		if err := s.host.links.AddrReplace(link, hostAddr(sub)); err != nil {
			return fmt.Errorf("give %s the address %s: %w", n.bridge, sub.gateway, err)
		}
	}
	if err := s.host.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", n.bridge, err)
	}
	return s.serveNames(ctx, n)
}

// freeBridge removes a bridge that a node with the same state folder left
// behind, whose records are gone.
func (s *Set) freeBridge(name string) error {
	link, err := s.host.links.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return nil
	case err != nil:
		return fmt.Errorf("interface %s: %w", name, err)
	case link.Type() == "bridge" && link.Attrs().Alias == s.alias():
		return s.deleteLink(name)
	}
	return errs.New(errs.Conflict, "the host has an interface %s already", name)
}

func (s *Set) addBridge(n *network) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.bridge
	attrs.MTU = n.mtu()
	attrs.HardwareAddr = bridgeMAC(n.id) // or it would change with its ports
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := s.host.links.LinkAdd(link); err != nil {
		return nil, err
	}
	if err := s.host.links.LinkSetAlias(link, s.alias()); err != nil {
		return nil, errors.Join(err, s.host.links.LinkDel(link))
	}
	return link, nil
}

// lower removes the bridge and stops answering names.
func (s *Set) lower(n *network) error {
	n.names.close()
	link, err := s.host.links.LinkByName(n.bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if link.Attrs().Alias != s.alias() {
		return nil // not made by us
	}
	return ignore(s.host.links.LinkDel(link), unix.ENODEV)
}

// bridgeSysctls turns forwarding on and guards the bridge. The host's own
// settings are changed only where they must, and that is logged.
func (s *Set) bridgeSysctls(ctx context.Context, n *network) error {
	set := func(name, value string) error {
		_, err := sysctl("net/"+name, value)
		return err
	}
	if err := set("ipv4/conf/"+n.bridge+"/route_localnet", "1"); err != nil {
		return err
	}
	if !n.config.Internal {
		changed, err := sysctl("net/ipv4/ip_forward", "1")
		if err != nil {
			return err
		}
		if changed {
			s.cfg.Log.InfoContext(ctx, "turned on forwarding on the host", "sysctl", "net.ipv4.ip_forward")
		}
	}
	if !s.hasIPv6() {
		if n.config.IPv6 {
			return errs.New(errs.Unsupported, "IPv6 is turned off on this host")
		}
		return nil
	}
	// Containers must not make themselves the host's router.
	if err := set("ipv6/conf/"+n.bridge+"/accept_ra", "0"); err != nil {
		return err
	}
	// A bridge waits for a carrier before it looks for duplicates of its
	// address, and until then could not find the first container.
	if err := set("ipv6/conf/"+n.bridge+"/accept_dad", "0"); err != nil {
		return err
	}
	if !n.config.IPv6 {
		return set("ipv6/conf/"+n.bridge+"/disable_ipv6", "1")
	}
	if err := set("ipv6/conf/"+n.bridge+"/disable_ipv6", "0"); err != nil || n.config.Internal {
		return err
	}
	return s.forward6(ctx)
}

// forward6 turns on IPv6 forwarding. A host that forwards takes no more
// router advertisements unless told to, and would lose its default route.
func (s *Set) forward6(ctx context.Context) error {
	const forwarding = "net/ipv6/conf/all/forwarding"
	if b, err := os.ReadFile("/proc/sys/" + forwarding); err == nil && strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	links, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return err
	}
	for _, l := range links {
		path := "net/ipv6/conf/" + l.Name() + "/accept_ra"
		b, err := os.ReadFile("/proc/sys/" + path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) != "1" {
			continue
		}
		if err == nil {
			_, err = sysctl(path, "2")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if _, err := sysctl(forwarding, "1"); err != nil {
		return err
	}
	s.cfg.Log.InfoContext(ctx, "turned on forwarding on the host; router advertisements are still taken", "sysctl", "net.ipv6.conf.all.forwarding")
	return nil
}

// hasIPv6 says whether the host's kernel has IPv6 and it is not turned off.
func (s *Set) hasIPv6() bool {
	has := false
	_ = s.host.do(func() error { // an error means no
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
		has = err == nil && strings.TrimSpace(string(b)) == "0"
		return err
	})
	return has
}

// mtu is 0 where the kernel's own is good.
func (n *network) mtu() int { return n.config.MTU }

// hostAddr is the gateway's address. Duplicates are not looked for: the
// address must be good before the first container is there to answer.
func hostAddr(sub subnet) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(sub.gateway, sub.prefix.Bits()))}
	if !sub.is4() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, size := n.Mask.Size()
	if a.Is4In6() && size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok && size == a.BitLen()
}

func bridgeMAC(id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(id))
	return append(net.HardwareAddr{0x02, 0xbe}, sum[:4]...)
}

// newID is 64 hexadecimal digits.
func newID() string {
	b := make([]byte, 32)
	random(b)
	return hex.EncodeToString(b)
}

func random(b []byte) { _, _ = rand.Read(b) } // never fails

func ignore(err error, harmless ...error) error {
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	return err
}
