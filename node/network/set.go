package network

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

const familyAll = unix.AF_UNSPEC

// checkEvery is how often Run looks whether the rules are still there, where the
// kernel does not tell.
const checkEvery = time.Minute

// When Run has CNI plugins collect leftovers: not while all pods come back.
const (
	collectAfter = time.Minute
	collectEvery = 6 * time.Hour
)

// Set is the networks of a node.
type Set struct {
	cfg      Config
	instance string
	host     *host
	firewall *firewall
	cni      *cniPlugins // nil where no configuration is given
	podCNI   *cniPlugins
	upstream *upstream

	life  context.Context //nolint:containedctx // the lifetime of what serves in the background
	end   context.CancelFunc
	tasks sync.WaitGroup // what serves in the background

	change sync.Mutex // networks come and go one at a time
	rules  sync.Mutex // held ports and the rules for them
	turns  turns      // one operation on a container at a time

	unplugger unplugger

	mu          sync.Mutex
	networks    map[string]*network    // by id
	attachments map[string]*attachment // by container
	sources     map[netip.Addr]string  // container that has an address
	holders     map[string][]*holder   // held ports, by container
	spread      uint32                 // turns the order of answers
	seats       map[uint64]*seat       // links that no pod has yet, by the inode of their namespace
	podCIDRs    []string
	told        podStatus
}

// Open reads the records and builds what they say: bridges, rules, held
// ports. What stands already, as after a restart of the node, is left in
// place. Close it before the DB.
func Open(ctx context.Context, cfg Config) (_ *Set, err error) {
	if len(cfg.Pools) == 0 {
		cfg.Pools = DefaultPools()
	}
	s := &Set{
		cfg: cfg, instance: instanceOf(cfg),
		networks: map[string]*network{}, attachments: map[string]*attachment{},
		sources: map[netip.Addr]string{}, holders: map[string][]*holder{}, seats: map[uint64]*seat{},
	}
	s.cfg.ResolvConf = cmp.Or(cfg.ResolvConf, "/etc/resolv.conf")
	s.upstream = newUpstream(s.cfg.ResolvConf)
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.host, err = openHost(cfg.HostNS); err != nil {
		return nil, err
	}
	if cfg.CNIConfDir != "" {
		s.cni = newCNIPlugins(cfg, cfg.CNIConfDir, s.host)
	}
	s.podCNI = newCNIPlugins(cfg, cmp.Or(cfg.PodCNIConfDir, cfg.CNIConfDir), s.host)
	s.firewall = newFirewall(s.host, s.instance)
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("read network records: %w", err)
	}
	if err := s.findStragglers(ctx); err != nil {
		s.cfg.Log.WarnContext(ctx, "CNI plugins that an earlier node has started may be at work", "err", err)
	}
	if err := s.build(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// instanceOf is empty for the machine's only node.
func instanceOf(cfg Config) string {
	if cfg.Instance != "" {
		return cfg.Instance
	}
	state, err := filepath.Abs(cfg.State)
	if err != nil {
		state = cfg.State
	}
	if state == "/run/berth" {
		return ""
	}
	sum := sha256.Sum256([]byte(state))
	return hex.EncodeToString(sum[:4])
}

// build brings the host to what the records say.
func (s *Set) build(ctx context.Context) error {
	s.change.Lock()
	defer s.change.Unlock()
	for _, n := range s.byName() {
		if err := s.raise(ctx, n); err != nil {
			return fmt.Errorf("network %s: %w", n.config.Name, err)
		}
	}
	if err := s.ensureDefault(ctx); err != nil {
		return fmt.Errorf("network %s: %w", Bridge, err)
	}
	if err := s.rebuildRules(); err != nil {
		return err
	}
	for _, a := range s.attached() {
		s.holdAgain(ctx, a)
	}
	return nil
}

// ensureDefault makes the network named bridge on the first start.
func (s *Set) ensureDefault(ctx context.Context) error {
	if _, err := s.find(Bridge); err == nil {
		return nil
	}
	cfg := s.cfg.Bridge
	cfg.Name, cfg.Driver = Bridge, ""
	if len(cfg.Subnets) == 0 {
		cfg.IPv6 = s.hasIPv6()
	}
	_, err := s.create(ctx, cfg, true)
	return err
}

// Run puts the rules back when somebody has flushed them, and has CNI plugins
// collect leftovers, until ctx is done. Names and held ports are served from
// Open to Close, whether it runs or not.
func (s *Set) Run(ctx context.Context) error {
	leftovers := time.NewTimer(collectAfter)
	defer leftovers.Stop()
	gone := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { s.watchRules(ctx, gone) })
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-gone:
			s.repair(ctx)
		case <-leftovers.C:
			leftovers.Reset(collectEvery)
			if s.instance != "" {
				continue // another node of this machine may be on the same networks
			}
			if err := s.collectCNI(ctx); err != nil {
				s.cfg.Log.WarnContext(ctx, "CNI plugins cannot collect leftovers", "err", err)
			}
		}
	}
}

// watchRules sends to gone when rules may have gone, until ctx is done.
func (s *Set) watchRules(ctx context.Context, gone chan<- struct{}) {
	err := s.firewall.watch(ctx, gone)
	if ctx.Err() != nil {
		return
	}
	s.cfg.Log.WarnContext(ctx, "nftables rules are looked at now and then only", "every", checkEvery, "err", err)
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		tell(gone)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Set) repair(ctx context.Context) {
	stands, err := s.firewall.stands()
	if err == nil && !stands {
		s.cfg.Log.WarnContext(ctx, "the nftables rules are gone: building them again")
		err = s.rebuildRules()
	}
	if err != nil {
		s.cfg.Log.ErrorContext(ctx, "cannot look after the nftables rules", "err", err)
	}
}

// Close lets go of sockets and waits for what is under way. Bridges, links
// and rules stay, and containers keep talking without the node.
func (s *Set) Close() error {
	s.end()
	s.mu.Lock()
	for _, held := range s.holders {
		for _, h := range held {
			h.close()
		}
	}
	for _, n := range s.networks {
		n.names.close()
	}
	for _, seat := range s.seats {
		_ = seat.ns.Close()
	}
	clear(s.seats)
	s.mu.Unlock()
	s.tasks.Wait()
	if s.podCNI != nil {
		s.podCNI.earlier.close()
	}
	if s.host != nil {
		s.host.close()
	}
	return nil
}

// rebuildRules writes the whole table from memory.
func (s *Set) rebuildRules() error {
	s.rules.Lock()
	defer s.rules.Unlock()
	return s.firewall.rebuild(s.zones(), s.allForwards())
}

// publish moves the rules of one container from before to after. Should the
// kernel not agree about before, everything is built again.
func (s *Set) publish(before, after []forward) error {
	before, after = without(before, after), without(after, before)
	if len(before) == 0 && len(after) == 0 {
		return nil
	}
	s.rules.Lock()
	err := s.firewall.change(before, after)
	s.rules.Unlock()
	if err != nil {
		err = s.rebuildRules()
	}
	s.forgetFlows(before, after)
	return err
}

func without(list, other []forward) []forward {
	return slices.DeleteFunc(slices.Clone(list), func(f forward) bool { return slices.Contains(other, f) })
}

// forgetFlows ends the kernel's memory of UDP flows to ports that changed:
// it would send them where they went before.
func (s *Set) forgetFlows(lists ...[]forward) {
	for _, f := range slices.Concat(lists...) {
		if f.proto != unix.IPPROTO_UDP {
			continue
		}
		filter := &netlink.ConntrackFilter{}
		err := errors.Join(filter.AddProtocol(f.proto), filter.AddPort(netlink.ConntrackOrigDstPort, f.from.Port()))
		family := netlink.InetFamily(unix.AF_INET)
		if f.from.Addr().Is6() {
			family = unix.AF_INET6
		}
		if err == nil {
			_, err = s.host.links.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		}
		if err != nil {
			s.cfg.Log.WarnContext(s.life, "cannot end old UDP flows", "port", f.from.Port(), "err", err)
		}
	}
}

// byName lists networks in a fixed order.
func (s *Set) byName() []*network {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*network, 0, len(s.networks))
	for _, n := range s.networks {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b *network) int { return cmp.Compare(a.config.Name, b.config.Name) })
	return list
}

func (s *Set) attached() []*attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*attachment, 0, len(s.attachments))
	for _, a := range s.attachments {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b *attachment) int { return cmp.Compare(a.container, b.container) })
	return list
}

func (s *Set) zones() []zone {
	var zones []zone
	for _, n := range s.byName() {
		zones = append(zones, n.zone())
	}
	return zones
}

func (s *Set) allForwards() []forward {
	var all []forward
	for _, a := range s.attached() {
		all = append(all, s.forwards(a)...)
	}
	return all
}

// Claims lists the containers that hold something here, sorted.
func (s *Set) Claims() []string { return s.claims(false) }

// PodAttachments lists the pods that hold something here, sorted.
func (s *Set) PodAttachments() []string { return s.claims(true) }

func (s *Set) claims(pods bool) []string {
	var ids []string
	for _, a := range s.attached() {
		if (a.pod != nil) == pods {
			ids = append(ids, a.container)
		}
	}
	return ids
}

// turns gives each key to one caller at a time.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{}
}

func (t *turns) take(ctx context.Context, key string) (done func(), err error) {
	for {
		t.mu.Lock()
		other, busy := t.taken[key]
		if !busy {
			mine := make(chan struct{})
			if t.taken == nil {
				t.taken = map[string]chan struct{}{}
			}
			t.taken[key] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.taken, key)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// bucket holds "net/<id>", "att/<container>" and "ula".
const bucket = "network"

// ula is the node's own /48 of unique local addresses.
func (s *Set) ula(ctx context.Context) (prefix netip.Prefix, err error) {
	err = s.cfg.DB.Update(ctx, func(tx *kv.Tx) error {
		kept, found, err := kv.GetJSON[netip.Prefix](tx, bucket, "ula")
		if err != nil || found {
			prefix = kept
			return err
		}
		b := [16]byte{0xfd}
		random(b[1:6])
		prefix = netip.PrefixFrom(netip.AddrFrom16(b), 48)
		return kv.PutJSON(tx, bucket, "ula", prefix)
	})
	if err != nil {
		return prefix, fmt.Errorf("make up an IPv6 prefix: %w", err)
	}
	return prefix, nil
}

// find resolves a name, an id or the beginning of one, among our bridges.
func (s *Set) find(ref string) (*network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.findLocked(ref)
}

func (s *Set) findLocked(ref string) (*network, error) {
	if n, ok := s.networks[ref]; ok {
		return n, nil
	}
	var found []*network
	for _, n := range s.networks {
		if n.config.Name == ref {
			return n, nil
		}
		if isShortID(ref, n.id) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, errs.New(errs.NotFound, "no such network: %s", ref)
	case 1:
		return found[0], nil
	}
	return nil, errs.New(errs.Conflict, "network %s is ambiguous: several ids begin so", ref)
}

func endpointsOf(a *attachment) []spec.Endpoint {
	list := make([]spec.Endpoint, 0, len(a.endpoints))
	for _, e := range a.endpoints {
		list = append(list, e.spec(a))
	}
	return list
}
