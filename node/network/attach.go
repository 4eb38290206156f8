package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"berth/base/errs"
	"berth/base/undo"
	"berth/spec"
)

// place is a network and how a container wants to be on it.
type place struct {
	net  *network // nil for CNI
	cni  string   // name of a CNI network
	want spec.EndpointConfig
}

// Attach puts a container on the networks it chose and publishes its ports.
// Attaching again what stands already changes nothing; after a reboot or an
// interrupted stop it is done anew, with the same addresses where they are
// not chosen otherwise. With host, none or container:<id> as mode there is
// nothing to do. It fails with errs.NotFound for an unknown network and
// errs.Conflict for a port or an address in use.
func (s *Set) Attach(ctx context.Context, req AttachRequest) (_ Attachment, err error) {
	if mode := req.Choice.Mode; mode == Host || mode == None || strings.HasPrefix(mode, "container:") {
		if len(req.Choice.Endpoints) > 0 {
			return Attachment{}, errs.New(errs.Invalid, "a container of network mode %s cannot be on other networks", mode)
		}
		return Attachment{}, nil
	}
	done, err := s.turns.take(ctx, req.Container)
	if err != nil {
		return Attachment{}, err
	}
	defer done()
	places, err := s.places(req.Choice)
	if err != nil {
		return Attachment{}, err
	}
	ports, err := wantedPorts(req.Choice, req.Exposed)
	if err != nil {
		return Attachment{}, err
	}
	old, ok := s.attachment(req.Container)
	if ok {
		if s.stands(ctx, old, req, places) {
			return Attachment{Endpoints: endpointsOf(old), Ports: old.ports}, nil
		}
		if err := s.detach(ctx, old); err != nil {
			return Attachment{}, err
		}
	}

	var u undo.Stack
	defer u.Run(ctx, &err)
	a := &attachment{container: req.Container, name: req.Name, hostname: req.Hostname, namespace: req.Namespace, dns: req.Choice.DNS}
	if slices.ContainsFunc(places, func(p place) bool { return p.net == nil }) {
		// A plugin is told the ports, so they are chosen first.
		if a.ports, err = s.hold(ctx, a, ports, &u); err != nil {
			return Attachment{}, err
		}
	}
	for _, p := range places {
		if err := s.join(ctx, a, p, old, &u); err != nil {
			return Attachment{}, err
		}
	}
	if err := s.finish(ctx, a, ports, &u); err != nil {
		return Attachment{}, err
	}
	u.Forget()
	return Attachment{Endpoints: endpointsOf(a), Ports: a.ports}, nil
}

// finish sets routes, ports and rules, and keeps the record.
func (s *Set) finish(ctx context.Context, a *attachment, ports []spec.PortMapping, u *undo.Stack) (err error) {
	if err := setRoutes(a.namespace, a.endpoints); err != nil {
		return err
	}
	if a.ports == nil && len(ports) > 0 {
		if a.ports, err = s.hold(ctx, a, ports, u); err != nil {
			return err
		}
	}
	if err := s.hairpin(a); err != nil {
		return err
	}
	s.aim(a)
	s.keep(a) // before the rules: should they be rebuilt meanwhile, ours are in
	u.Add("record", func(context.Context) error { s.forget(a); return nil })
	forwards := s.forwards(a)
	u.Add("rules", func(context.Context) error {
		s.forget(a) // not to be built again
		return s.publish(forwards, nil)
	})
	return s.publish(nil, forwards)
}

// places resolves the networks of a choice, the one of Mode first.
func (s *Set) places(choice spec.NetworkChoice) ([]place, error) {
	wants := slices.Clone(choice.Endpoints)
	mode := choice.Mode
	if mode == "" || mode == "default" {
		mode = s.defaultNetwork()
	}
	first, err := s.place(spec.EndpointConfig{Network: mode})
	if err != nil {
		return nil, err
	}
	places := []place{first}
	for _, want := range wants {
		if want.Network == "" || want.Network == "default" {
			want.Network = mode
		}
		p, err := s.place(want)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(places, func(o place) bool { return o.id() == p.id() })
		switch {
		case i == 0 && emptyConfig(places[0].want):
			places[0] = p // the settings on the network of Mode
		case i >= 0:
			return nil, errs.New(errs.Invalid, "network %s is named twice", want.Network)
		default:
			places = append(places, p)
		}
	}
	return places, nil
}

func emptyConfig(c spec.EndpointConfig) bool {
	return len(c.Aliases) == 0 && c.IPv4 == "" && c.IPv6 == "" && c.MAC == ""
}

func (p place) id() string {
	if p.net == nil {
		return cniID(p.cni)
	}
	return p.net.id
}

// place finds the network and checks the wishes as far as can be.
func (s *Set) place(want spec.EndpointConfig) (place, error) {
	if want.Network == Host || want.Network == None {
		return place{}, errs.New(errs.Invalid, "network %s cannot be joined besides others", want.Network)
	}
	if _, err := wantedAddrs(want); err != nil {
		return place{}, err
	}
	if want.MAC != "" {
		if _, err := parseMAC(want.MAC); err != nil {
			return place{}, err
		}
	}
	for _, alias := range want.Aliases {
		if !validHostname(alias) {
			return place{}, errs.New(errs.Invalid, "alias %q is not a host name", alias)
		}
	}
	n, err := s.find(want.Network)
	if err == nil {
		return place{net: n, want: want}, nil
	}
	if errors.Is(err, errs.NotFound) && s.cni != nil {
		if list, cniErr := s.cni.find(want.Network); cniErr == nil {
			return place{cni: list.Name, want: want}, nil
		}
	}
	return place{}, err
}

func wantedAddrs(want spec.EndpointConfig) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, w := range []struct {
		text string
		v6   bool
	}{{want.IPv4, false}, {want.IPv6, true}} {
		if w.text == "" {
			continue
		}
		a, err := netip.ParseAddr(w.text)
		if err != nil || a.Is6() != w.v6 || a.Is4In6() || a.Zone() != "" {
			return nil, errs.New(errs.Invalid, "%q is not an address of its family", w.text)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// stands says whether an attachment is what is asked for, and is there.
func (s *Set) stands(ctx context.Context, a *attachment, req AttachRequest, places []place) bool {
	if a.namespace != req.Namespace || len(a.endpoints) < len(places) {
		return false
	}
	for i, p := range places {
		if a.endpoints[i].network != p.id() {
			return false
		}
	}
	return !slices.ContainsFunc(a.endpoints, func(e *endpoint) bool {
		if e.cni {
			return s.cni == nil || !e.routed || s.cni.check(ctx, a, e) != nil
		}
		return !s.plugged(a.namespace, e)
	})
}

// join puts the container on one network, as the next ethN.
func (s *Set) join(ctx context.Context, a *attachment, p place, old *attachment, u *undo.Stack) error {
	if p.net == nil {
		e, err := s.cni.add(ctx, a, p, freeInterface(a))
		if err != nil {
			s.keepLeft(a, e)
			return fmt.Errorf("network %s: %w", p.cni, err)
		}
		a.endpoints = append(a.endpoints, e)
		u.Add("leave "+p.cni, func(ctx context.Context) error { return s.cni.remove(ctx, a, e) })
		return nil
	}
	n := p.net
	want, err := wantedAddrs(p.want)
	if err != nil {
		return err
	}
	e := &endpoint{
		network: n.id, title: n.config.Name, aliases: p.want.Aliases,
		inside: freeInterface(a), outside: outsideName(a.container, n.id),
		gates: n.gateways(), routed: !n.config.Internal,
	}
	if e.addrs, err = s.leaseAll(ctx, n, a.container, want, addrsOn(old, n.id)); err != nil {
		return err
	}
	u.Add("leave "+n.config.Name, func(context.Context) error { s.unplug(e); return nil })
	e.mac = p.want.MAC
	if v4, ok := e.addr(false); ok && e.mac == "" {
		e.mac = addressMAC(v4).String()
	}
	if err := s.plug(ctx, n, a.namespace, e); err != nil {
		return fmt.Errorf("network %s: %w", n.config.Name, err)
	}
	a.endpoints = append(a.endpoints, e)
	return nil
}

// keepLeft puts on record what a failed ADD has left, so that the next Attach or
// Detach takes it back. A container that is on other networks has one already.
func (s *Set) keepLeft(a *attachment, e *endpoint) {
	if _, known := s.attachment(a.container); e == nil || known {
		return
	}
	left := *a
	left.endpoints, left.ports = []*endpoint{e}, nil
	s.keep(&left)
}

// addrsOn are the addresses that a former attachment had on a network.
func addrsOn(old *attachment, network string) []netip.Addr {
	if old == nil {
		return nil
	}
	var addrs []netip.Addr
	for _, e := range old.endpoints {
		if e.network == network {
			for _, p := range e.addrs {
				addrs = append(addrs, p.Addr())
			}
		}
	}
	return addrs
}

func freeInterface(a *attachment) string {
	for i := 0; ; i++ {
		name := "eth" + strconv.Itoa(i)
		if !slices.ContainsFunc(a.endpoints, func(e *endpoint) bool { return e.inside == name }) {
			return name
		}
	}
}

// Detach takes a container off all networks; none is no error. Its links
// are removed in the background.
func (s *Set) Detach(ctx context.Context, container string) error {
	done, err := s.turns.take(ctx, container)
	if err != nil {
		return err
	}
	defer done()
	if a, ok := s.attachment(container); ok {
		return s.detach(ctx, a)
	}
	return nil
}

func (s *Set) detach(ctx context.Context, a *attachment) error {
	forwards := s.forwards(a)
	for _, e := range a.endpoints {
		if !e.cni {
			continue
		}
		if err := s.leaveCNI(ctx, a, e); err != nil {
			return fmt.Errorf("network %s: %w", e.title, err)
		}
	}
	s.forget(a)
	err := s.publish(forwards, nil)
	s.letGo(a.container)
	for _, e := range a.endpoints {
		if !e.cni {
			s.unplug(e)
		}
	}
	return err
}

func (s *Set) leaveCNI(ctx context.Context, a *attachment, e *endpoint) error {
	switch {
	case a.pod != nil:
		return s.podCNI.removePod(ctx, a, e)
	case s.cni == nil:
		return errs.New(errs.Unavailable, "container %.12s is on the network, but no CNI configuration is given", a.container)
	}
	return s.cni.remove(ctx, a, e)
}

// Connect puts an attached container on one more network.
func (s *Set) Connect(ctx context.Context, req AttachRequest, want spec.EndpointConfig) (_ spec.Endpoint, err error) {
	done, err := s.turns.take(ctx, req.Container)
	if err != nil {
		return spec.Endpoint{}, err
	}
	defer done()
	old, ok := s.attachment(req.Container)
	if !ok {
		return spec.Endpoint{}, errs.New(errs.Conflict, "container %s is not on networks of this node", req.Name)
	}
	p, err := s.place(want)
	if err != nil {
		return spec.Endpoint{}, err
	}
	if slices.ContainsFunc(old.endpoints, func(e *endpoint) bool { return e.network == p.id() }) {
		return spec.Endpoint{}, errs.New(errs.Conflict, "container %s is on network %s already", old.name, want.Network)
	}
	a := *old
	a.endpoints = slices.Clone(old.endpoints)
	var u undo.Stack
	defer u.Run(ctx, &err)
	if err := s.join(ctx, &a, p, nil, &u); err != nil {
		return spec.Endpoint{}, err
	}
	if err := s.replace(old, &a); err != nil {
		return spec.Endpoint{}, err
	}
	u.Forget()
	return a.endpoints[len(a.endpoints)-1].spec(&a), nil
}

// Disconnect takes a container off one network.
func (s *Set) Disconnect(ctx context.Context, container, ref string) error {
	done, err := s.turns.take(ctx, container)
	if err != nil {
		return err
	}
	defer done()
	p, err := s.place(spec.EndpointConfig{Network: ref})
	if err != nil {
		return err
	}
	old, ok := s.attachment(container)
	i := -1
	if ok {
		i = slices.IndexFunc(old.endpoints, func(e *endpoint) bool { return e.network == p.id() })
	}
	if i < 0 {
		return errs.New(errs.Conflict, "container %.12s is not on network %s", container, ref)
	}
	gone := old.endpoints[i]
	a := *old
	a.endpoints = slices.Delete(slices.Clone(old.endpoints), i, i+1)
	if gone.cni {
		if err := s.cni.remove(ctx, old, gone); err != nil {
			return err
		}
	} else if err := s.deleteLink(gone.outside); err != nil { // now, not later: a process may look
		return err
	}
	err = s.replace(old, &a)
	s.mu.Lock()
	s.dropSources(gone, container)
	s.mu.Unlock()
	s.retire(gone)()
	return err
}

// replace makes a the attachment instead of old, and leads its ports and
// default routes to where they can go now.
func (s *Set) replace(old, a *attachment) error {
	if err := setRoutes(a.namespace, a.endpoints); err != nil {
		return err
	}
	if err := s.hairpin(a); err != nil {
		return err
	}
	before := s.forwards(old)
	s.aim(a)
	s.keep(a)
	if err := s.publish(before, s.forwards(a)); err != nil {
		s.aim(old)
		s.keep(old)
		return err
	}
	return nil
}
