package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"

	"berth/base/errs"
	"berth/base/kv"
	"berth/base/span"
	"berth/base/undo"
	"berth/spec"
)

// PodRequest is a pod that wants a network.
type PodRequest struct {
	ID, Name, Namespace, UID string
	NetNS                    string // path of its network namespace, with lo up
	CgroupParent             string // told to plugins that ask for it
	Ports                    []spec.PodPort
	Annotations              map[string]string
	DNS                      *spec.PodDNS
}

// byPlugins is the PodNetwork that waits for a CNI configuration.
const byPlugins = "cni"

// podInterface is what pods call their first link.
const podInterface = "eth0"

// AttachPod puts a pod on the network that pods have: the first of the CNI
// configuration, else our own bridge. It returns the links besides lo and the
// addresses, the one that Kubernetes shows first. Attaching again what stands
// changes nothing. Whatever fails leaves nothing behind, or a record, so that
// DetachPod finds what a plugin could not take back.
//
// It fails with errs.Unavailable where pods can have no network now,
// errs.Conflict for a port in use and errs.Timeout for a plugin that hangs.
func (s *Set) AttachPod(ctx context.Context, req PodRequest) (links []spec.PodInterface, ips []string, err error) {
	ctx, end := span.Start(ctx, "attach pod to its network", "pod", req.ID)
	defer func() { end(err) }()
	done, err := s.turns.take(ctx, req.ID)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	ports, err := podPorts(req.Ports)
	if err != nil {
		return nil, nil, err
	}
	plugins, err := s.podPlugins()
	if err != nil {
		return nil, nil, err
	}
	a, ok := s.attachment(req.ID)
	if ok && !s.podStands(ctx, a, req) {
		if err := s.detach(ctx, a); err != nil {
			return nil, nil, fmt.Errorf("take pod %.12s off its former network: %w", req.ID, err)
		}
		ok = false
	}
	switch {
	case ok:
	case plugins != nil:
		a, err = s.attachByPlugins(ctx, req, plugins, ports)
	default:
		a, err = s.attachToBridge(ctx, req, ports)
	}
	if err != nil {
		return nil, nil, err
	}
	return a.pod.Interfaces, podIPs(a), nil
}

// DetachPod takes a pod off its network. A pod that is on none, or not any
// more, is no error; of the request only the ID counts.
func (s *Set) DetachPod(ctx context.Context, req PodRequest) (err error) {
	ctx, end := span.Start(ctx, "detach pod from its network", "pod", req.ID)
	defer func() { end(err) }()
	done, err := s.turns.take(ctx, req.ID)
	if err != nil {
		return err
	}
	defer done()
	if a, ok := s.attachment(req.ID); ok {
		return s.detach(ctx, a)
	}
	return nil
}

// podPlugins is the CNI network that pods get, nil for a bridge of ours.
func (s *Set) podPlugins() (*libcni.NetworkConfigList, error) {
	if s.cfg.PodNetwork != "" && s.cfg.PodNetwork != byPlugins {
		return nil, nil
	}
	lists, problems := s.podCNI.load()
	switch {
	case len(lists) > 0:
		return lists[0], nil // the first by name, as kubelet's runtimes have it
	case problems != nil:
		return nil, errs.New(errs.Unavailable, "pods have no network: %w", problems)
	case s.cfg.PodNetwork == byPlugins:
		return nil, errs.New(errs.Unavailable, "pods have no network: no CNI configuration in %s", s.podCNI.dir)
	}
	return nil, nil
}

// podBridge is the bridge network of pods.
func (s *Set) podBridge() (*network, error) {
	name := Bridge
	if s.cfg.PodNetwork != "" {
		name = s.cfg.PodNetwork
	}
	n, err := s.find(name)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "pods have no network: %w", err)
	}
	return n, nil
}

// podStands says whether an attachment is there, in that namespace.
func (s *Set) podStands(ctx context.Context, a *attachment, req PodRequest) bool {
	if a.pod == nil || len(a.pod.Interfaces) == 0 || a.namespace != req.NetNS || !isNamespace(req.NetNS) {
		return false
	}
	e := a.endpoints[0]
	if !e.cni {
		return s.plugged(a.namespace, e)
	}
	list, err := libcni.NetworkConfFromBytes(a.pod.CNI)
	if err == nil {
		err = s.podCNI.checkList(ctx, list, a.podConf(e))
	}
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "a pod's network does not stand: it is made anew", "pod", a.container, "err", err)
	}
	return err == nil
}

// attachToBridge uses the link that the namespace has already, or makes one.
func (s *Set) attachToBridge(ctx context.Context, req PodRequest, ports []spec.PortMapping) (_ *attachment, err error) {
	n, err := s.podBridge()
	if err != nil {
		return nil, err
	}
	var u undo.Stack
	defer u.Run(ctx, &err)
	a := &attachment{container: req.ID, name: req.Name + "." + req.Namespace, hostname: req.Name, namespace: req.NetNS, pod: &podRecord{}}
	e := s.takeSeat(req, n)
	if e != nil {
		u.Add("leave "+n.config.Name, func(context.Context) error { s.unplug(e); return nil })
		a.endpoints = append(a.endpoints, e)
	} else {
		if err := s.clearSeat(req.NetNS); err != nil {
			return nil, err
		}
		err := s.join(ctx, a, place{net: n}, nil, &u)
		for errors.Is(err, errs.Exhausted) && s.yieldSeat(ctx, n) {
			err = s.join(ctx, a, place{net: n}, nil, &u)
		}
		if err != nil {
			return nil, err
		}
		e = a.endpoints[0]
		if err := s.furnish(a); err != nil {
			return nil, err
		}
	}
	a.pod.Interfaces = []spec.PodInterface{{Name: e.inside, MAC: e.mac, IPs: ipsOf(e)}}
	if len(ports) > 0 {
		if a.ports, err = s.hold(ctx, a, ports, &u); err != nil {
			return nil, err
		}
		s.aim(a)
	}
	u.Add("record", func(context.Context) error { s.forget(a); return nil })
	if err := s.keepPod(a); err != nil { // before the rules: should they be rebuilt meanwhile, ours are in
		return nil, err
	}
	forwards := s.forwards(a)
	u.Add("rules", func(context.Context) error {
		s.forget(a) // not to be built again
		return s.publish(forwards, nil)
	})
	if err := s.publish(nil, forwards); err != nil {
		return nil, err
	}
	u.Forget()
	return a, nil
}

// furnish completes a new link: routes, and the way back to itself by a
// service's address.
func (s *Set) furnish(a *attachment) error {
	if err := setRoutes(a.namespace, a.endpoints); err != nil {
		return err
	}
	return s.turnBack(a.endpoints[0])
}

// podPorts are the ports that a pod publishes. Some clients list others too.
func podPorts(list []spec.PodPort) ([]spec.PortMapping, error) {
	var ports []spec.PortMapping
	for _, p := range list {
		if p.HostPort == 0 {
			continue
		}
		if p.HostPort < 0 || p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			return nil, errs.New(errs.Invalid, "port %d of the host to port %d: want 1 to 65535", p.HostPort, p.ContainerPort)
		}
		m := spec.PortMapping{HostIP: p.HostIP, HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort), Protocol: p.Protocol}
		if err := checkPort(&m); err != nil {
			return nil, err
		}
		if !slices.Contains(ports, m) {
			ports = append(ports, m)
		}
	}
	return ports, nil
}

func ipsOf(e *endpoint) []string {
	ips := make([]string, 0, len(e.addrs))
	for _, p := range e.addrs {
		ips = append(ips, p.Addr().String())
	}
	return ips
}

// podIPs are all addresses, those of IPv4 first.
func podIPs(a *attachment) []string {
	var ips []string
	for _, e := range a.endpoints {
		ips = append(ips, ipsOf(e)...)
	}
	return ips
}

// SetPodCIDR says which addresses this node's pods have, one range or one of
// each family behind a comma. CNI plugins that take ranges are told.
func (s *Set) SetPodCIDR(ctx context.Context, cidr string) error {
	var cidrs []string
	for part := range strings.SplitSeq(cidr, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			return errs.New(errs.Invalid, "pod CIDR %q: %w", part, err)
		}
		cidrs = append(cidrs, p.Masked().String())
	}
	if len(cidrs) == 0 { // kubelet says so where the control plane gives none
		return nil
	}
	s.mu.Lock()
	same := slices.Equal(cidrs, s.podCIDRs)
	s.podCIDRs = cidrs
	s.mu.Unlock()
	if same {
		return nil
	}
	return s.cfg.DB.Update(ctx, func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, "podcidr", cidrs) })
}

// podStatus is what the plugins said last of themselves.
type podStatus struct {
	config []byte
	err    error
	until  time.Time
}

const (
	statusGood = 10 * time.Second // believed so long
	statusBad  = time.Second
)

// PodsReady says why pods can have no network now: errs.Unavailable.
func (s *Set) PodsReady(ctx context.Context) error {
	list, err := s.podPlugins()
	if err != nil {
		return err
	}
	if list == nil {
		_, err := s.podBridge()
		return err
	}
	s.mu.Lock()
	told := s.told
	s.mu.Unlock()
	if string(told.config) == string(list.Bytes) && time.Now().Before(told.until) {
		return told.err
	}
	err = s.podCNI.status(ctx, list)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	told = podStatus{config: list.Bytes, err: err, until: time.Now().Add(statusGood)}
	if err != nil {
		told.until = time.Now().Add(statusBad)
	}
	s.mu.Lock()
	s.told = told
	s.mu.Unlock()
	return err
}

// seat is a link into a namespace that no pod has yet.
type seat struct {
	net      *network
	endpoint *endpoint
	ns       *os.File // keeps the inode, and so the key, from being used again
}

// PlugReady gives a network namespace that no pod has yet its link, so that
// AttachPod has only to write down whose it is. Where pods are on a network of
// plugins there is nothing to do.
func (s *Set) PlugReady(ctx context.Context, path string) (err error) {
	plugins, err := s.podPlugins()
	if err != nil || plugins != nil {
		return nil //nolint:nilerr // then pods have no network, and are told
	}
	n, err := s.podBridge()
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	ino, err := namespaceInode(path)
	if err != nil {
		return err
	}
	var u undo.Stack
	defer u.Run(ctx, &err)
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	u.Add("namespace", func(context.Context) error { return ns.Close() })
	a := &attachment{container: "ready-" + newID()[:16], namespace: path}
	if err := s.join(ctx, a, place{net: n}, nil, &u); err != nil {
		return err
	}
	if err := s.furnish(a); err != nil {
		return err
	}
	s.mu.Lock()
	s.seats[ino] = &seat{net: n, endpoint: a.endpoints[0], ns: ns}
	s.mu.Unlock()
	u.Forget()
	return nil
}

// UnplugReady takes the link of a namespace back that no pod will have.
func (s *Set) UnplugReady(path string) {
	if seat := s.findSeat(path, nil); seat != nil {
		s.unplug(seat.endpoint)
		_ = seat.ns.Close() // only ever read
	}
}

// findSeat takes the seat in a namespace, if it is on network n; nil stands
// for any.
func (s *Set) findSeat(path string, n *network) *seat {
	s.mu.Lock()
	none := len(s.seats) == 0
	s.mu.Unlock()
	if none {
		return nil
	}
	ino, err := namespaceInode(path)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.seats[ino]
	if found == nil || n != nil && (found.net != n || n.gone) {
		return nil
	}
	delete(s.seats, ino)
	return found
}

// takeSeat makes the link in a namespace the pod's, if there is one.
func (s *Set) takeSeat(req PodRequest, n *network) *endpoint {
	found := s.findSeat(req.NetNS, n)
	if found == nil {
		return nil
	}
	s.mu.Lock()
	for _, p := range found.endpoint.addrs {
		if held := n.leases[p.Addr()]; held != nil {
			n.leases[p.Addr()] = &lease{container: req.ID, link: held.link}
		}
	}
	s.mu.Unlock()
	_ = found.ns.Close() // only ever read
	return found.endpoint
}

// clearSeat removes a link that leads elsewhere than it should now.
func (s *Set) clearSeat(path string) error {
	found := s.findSeat(path, nil)
	if found == nil {
		return nil
	}
	return s.freeSeat(found)
}

func (s *Set) freeSeat(found *seat) error {
	err := s.deleteLink(found.endpoint.outside)
	s.retire(found.endpoint)()
	return errors.Join(err, found.ns.Close())
}

// yieldSeat frees the address of a namespace on n that no pod has yet, for a
// pod that finds none; false where there is no such namespace.
func (s *Set) yieldSeat(ctx context.Context, n *network) bool {
	var found *seat
	s.mu.Lock()
	for ino, seat := range s.seats {
		if seat.net == n {
			found = seat
			delete(s.seats, ino)
			break
		}
	}
	s.mu.Unlock()
	if found == nil {
		return false
	}
	if err := s.freeSeat(found); err != nil {
		s.cfg.Log.WarnContext(ctx, "the link of a namespace that no pod has is left", "err", err)
	}
	return true
}
