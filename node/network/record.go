package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"berth/base/kv"
	"berth/spec"
)

// attachment is a container on its networks. It is replaced, never changed:
// who reads one needs no lock.
type attachment struct {
	container string
	name      string
	hostname  string
	namespace string
	endpoints []*endpoint
	ports     []spec.PortMapping // as they came out: no zero host ports
	dns       []string           // asked instead of the host's servers
	pod       *podRecord         // nil for a container
}

// endpoint is one interface of a container.
type endpoint struct {
	network string // id
	title   string // name of the network
	cni     bool
	inside  string // interface in the container
	outside string // the other end, on the host
	mac     string
	addrs   []netip.Prefix // the container's, IPv4 first
	gates   []netip.Addr   // gateways, as addrs
	routed  bool           // a way out leads through here; of CNI, unless its ADD has failed
	aliases []string
}

type attachmentRecord struct {
	Container string             `json:"container"`
	Name      string             `json:"name"`
	Hostname  string             `json:"hostname,omitempty"`
	Namespace string             `json:"namespace"`
	Endpoints []endpointRecord   `json:"endpoints"`
	Ports     []spec.PortMapping `json:"ports,omitempty"`
	DNS       []string           `json:"dns,omitempty"`
	Pod       *podRecord         `json:"pod,omitempty"`
}

// podRecord is what only pods have. The configuration is that of the time of
// ADD, for DEL when the file has changed or the machine has started again.
type podRecord struct {
	CNI        []byte              `json:"cni,omitempty"`
	Args       [][2]string         `json:"args,omitempty"`
	Abilities  map[string]any      `json:"abilities,omitempty"`
	Interfaces []spec.PodInterface `json:"interfaces,omitempty"` // none before ADD has ended
}

type endpointRecord struct {
	Network string         `json:"network"`
	Title   string         `json:"title"`
	CNI     bool           `json:"cni,omitempty"`
	Inside  string         `json:"inside"`
	Outside string         `json:"outside,omitempty"`
	MAC     string         `json:"mac,omitempty"`
	Addrs   []netip.Prefix `json:"addrs"`
	Gates   []netip.Addr   `json:"gates,omitempty"`
	Routed  bool           `json:"routed,omitempty"`
	Aliases []string       `json:"aliases,omitempty"`
}

func (a *attachment) record() attachmentRecord {
	r := attachmentRecord{Container: a.container, Name: a.name, Hostname: a.hostname, Namespace: a.namespace, Ports: a.ports, DNS: a.dns, Pod: a.pod}
	for _, e := range a.endpoints {
		r.Endpoints = append(r.Endpoints, endpointRecord{e.network, e.title, e.cni, e.inside, e.outside, e.mac, e.addrs, e.gates, e.routed, e.aliases})
	}
	return r
}

func (r attachmentRecord) attachment() *attachment {
	a := &attachment{container: r.Container, name: r.Name, hostname: r.Hostname, namespace: r.Namespace, ports: r.Ports, dns: r.DNS, pod: r.Pod}
	for _, e := range r.Endpoints {
		a.endpoints = append(a.endpoints, &endpoint{e.Network, e.Title, e.CNI, e.Inside, e.Outside, e.MAC, e.Addrs, e.Gates, e.Routed, e.Aliases})
	}
	return a
}

func (e *endpoint) spec(a *attachment) spec.Endpoint {
	out := spec.Endpoint{
		Network: e.title, Container: a.container, Name: a.name,
		Interface: e.inside, MAC: e.mac, Aliases: e.aliases,
	}
	for _, p := range e.addrs {
		if p.Addr().Is4() && out.IPv4 == "" {
			out.IPv4 = p.String()
		} else if p.Addr().Is6() && out.IPv6 == "" {
			out.IPv6 = p.String()
		}
	}
	for _, g := range e.gates {
		if g.Is4() && out.Gateway4 == "" {
			out.Gateway4 = g.String()
		} else if g.Is6() && out.Gateway6 == "" {
			out.Gateway6 = g.String()
		}
	}
	return out
}

// addr is the endpoint's address of a family, if it has one.
func (e *endpoint) addr(v6 bool) (netip.Addr, bool) {
	for _, p := range e.addrs {
		if p.Addr().Is6() == v6 {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// load reads the records into memory.
func (s *Set) load() error {
	return s.cfg.DB.View(func(tx *kv.Tx) error {
		err := kv.EachJSON(tx, bucket, "net/", func(key string, r networkRecord) error {
			n, err := r.network()
			if err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			s.networks[n.id] = n
			return nil
		})
		if err != nil {
			return err
		}
		if s.podCIDRs, _, err = kv.GetJSON[[]string](tx, bucket, "podcidr"); err != nil {
			return err
		}
		err = kv.EachJSON(tx, bucket, "att/", func(key string, r attachmentRecord) error {
			if r.Container != strings.TrimPrefix(key, "att/") {
				return fmt.Errorf("record %s is of container %q", key, r.Container)
			}
			s.attachments[r.Container] = r.attachment()
			return nil
		})
		if err != nil {
			return err
		}
		if err := s.loadPods(); err != nil {
			return err
		}
		for _, a := range s.attachments {
			for _, e := range a.endpoints {
				s.claim(e, a.container)
			}
		}
		return nil
	})
}

// claim enters the addresses of an endpoint that a record holds.
func (s *Set) claim(e *endpoint, container string) {
	n := s.networks[e.network]
	for _, p := range e.addrs {
		s.sources[p.Addr()] = container
		if n != nil {
			n.leases[p.Addr()] = &lease{container: container, link: e.outside}
		}
	}
}

// keep makes an attachment known, in memory and for the next start. Its
// record is written with the next commit: what follows a successful Attach,
// such as the record of the started container, cannot be durable without it.
func (s *Set) keep(a *attachment) {
	s.mu.Lock()
	s.attachments[a.container] = a
	for _, e := range a.endpoints {
		for _, p := range e.addrs {
			s.sources[p.Addr()] = a.container
		}
	}
	s.mu.Unlock()
	s.save(a)
}

func (s *Set) save(a *attachment) {
	record := a.record()
	s.cfg.DB.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, "att/"+a.container, record) })
}

// forget is the opposite of keep. The addresses stay leased.
func (s *Set) forget(a *attachment) {
	s.mu.Lock()
	delete(s.attachments, a.container)
	for _, e := range a.endpoints {
		s.dropSources(e, a.container)
	}
	s.mu.Unlock()
	if a.pod != nil {
		if err := os.Remove(s.podFile(a.container)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.cfg.Log.WarnContext(s.life, "the record of a pod's network stays", "pod", a.container, "err", err)
		}
	}
	s.cfg.DB.Later(func(tx *kv.Tx) error { return tx.Delete(bucket, "att/"+a.container) })
}

// dropSources: the caller holds mu.
func (s *Set) dropSources(e *endpoint, container string) {
	for _, p := range e.addrs {
		if s.sources[p.Addr()] == container {
			delete(s.sources, p.Addr())
		}
	}
}

// find the attachment of a container.
func (s *Set) attachment(container string) (*attachment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.attachments[container]
	return a, ok
}

// Attached says how a container is reached now.
func (s *Set) Attached(container string) (Attachment, bool) {
	a, ok := s.attachment(container)
	if !ok {
		return Attachment{}, false
	}
	return Attachment{Endpoints: endpointsOf(a), Ports: a.ports}, true
}

// Rename changes the name by which others find a container.
func (s *Set) Rename(container, name string) {
	done, err := s.turns.take(s.life, container)
	if err != nil {
		return // closed
	}
	defer done()
	s.mu.Lock()
	old, ok := s.attachments[container]
	if !ok {
		s.mu.Unlock()
		return
	}
	a := *old
	a.name = name
	s.attachments[container] = &a
	s.mu.Unlock()
	s.save(&a)
}
