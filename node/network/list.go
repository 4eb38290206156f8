package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

// IDs of the networks that are not bridges.
const (
	hostID = "0000000000000000000000000000000000000000000000000000000000000001"
	noneID = "0000000000000000000000000000000000000000000000000000000000000002"
)

func plainNetworks() []spec.Network {
	return []spec.Network{
		{ID: hostID, Name: Host, Builtin: true, Config: spec.NetworkConfig{Name: Host, Driver: "host"}, Endpoints: []spec.Endpoint{}},
		{ID: noneID, Name: None, Builtin: true, Config: spec.NetworkConfig{Name: None, Driver: "null"}, Endpoints: []spec.Endpoint{}},
	}
}

// all lists every network, by name.
func (s *Set) all() []spec.Network {
	list := plainNetworks()
	for _, n := range s.byName() {
		list = append(list, s.describe(n))
	}
	if s.cni != nil {
		for _, conf := range s.cni.lists() {
			if slices.ContainsFunc(list, func(n spec.Network) bool { return n.Config.Name == conf.Name }) {
				continue // ours was first
			}
			id := cniID(conf.Name)
			list = append(list, spec.Network{ID: id, Name: conf.Name, Config: spec.NetworkConfig{Name: conf.Name, Driver: "cni"}, Endpoints: s.endpointsOn(id)})
		}
	}
	slices.SortFunc(list, func(a, b spec.Network) int { return cmp.Compare(a.Config.Name, b.Config.Name) })
	return list
}

func (s *Set) describe(n *network) spec.Network {
	return spec.Network{ID: n.id, Name: n.config.Name, Created: n.created, Config: n.config, Interface: n.bridge, Builtin: n.builtin(), Endpoints: s.endpointsOn(n.id)}
}

func (s *Set) endpointsOn(network string) []spec.Endpoint {
	list := []spec.Endpoint{}
	for _, a := range s.attached() {
		for _, e := range a.endpoints {
			if e.network == network {
				list = append(list, e.spec(a))
			}
		}
	}
	return list
}

// Get finds a network by name, id or the beginning of an id. It fails with
// errs.NotFound, or errs.Conflict where several ids begin so.
func (s *Set) Get(ref string) (spec.Network, error) {
	if ref == "default" {
		ref = s.defaultNetwork()
	}
	var found []spec.Network
	for _, n := range s.all() {
		if n.Config.Name == ref || n.ID == ref {
			return n, nil
		}
		if isShortID(ref, n.ID) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return spec.Network{}, errs.New(errs.NotFound, "no such network: %s", ref)
	case 1:
		return found[0], nil
	}
	return spec.Network{}, errs.New(errs.Conflict, "network %s is ambiguous: several ids begin so", ref)
}

// List gives the networks that fit the filter: name (a part of it), id (its
// beginning), driver, label, type (builtin or custom), dangling.
func (s *Set) List(filter spec.Filter) ([]spec.Network, error) {
	for key, values := range filter {
		if !slices.Contains([]string{"name", "id", "driver", "label", "type", "dangling"}, key) {
			return nil, errs.New(errs.Invalid, "networks cannot be filtered by %q: there are name, id, driver, label, type and dangling", key)
		}
		for _, v := range values {
			if key == "type" && v != "builtin" && v != "custom" || key == "dangling" && v != "true" && v != "false" {
				return nil, errs.New(errs.Invalid, "filter %s=%q means nothing", key, v)
			}
		}
	}
	return slices.DeleteFunc(s.all(), func(n spec.Network) bool { return !matches(n, filter) }), nil
}

func matches(n spec.Network, filter spec.Filter) bool {
	for key, values := range filter {
		fits := func(v string) bool {
			switch key {
			case "name":
				return strings.Contains(n.Config.Name, v)
			case "id":
				return strings.HasPrefix(n.ID, v)
			case "driver":
				return n.Config.Driver == v
			case "type":
				return n.Builtin == (v == "builtin")
			case "dangling":
				return (len(n.Endpoints) == 0 && !n.Builtin) == (v == "true")
			}
			return hasLabel(n.Config.Labels, v)
		}
		if key == "label" { // every label must be there; of the others one value is enough
			if slices.ContainsFunc(values, func(v string) bool { return !fits(v) }) {
				return false
			}
		} else if len(values) > 0 && !slices.ContainsFunc(values, fits) {
			return false
		}
	}
	return true
}

func hasLabel(labels map[string]string, want string) bool {
	key, value, withValue := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!withValue || got == value)
}

// defaultNetwork is where a container goes that names none: the first of the
// CNI configuration where one is given, as its users expect, else our bridge.
func (s *Set) defaultNetwork() string {
	if s.cni != nil {
		if lists := s.cni.lists(); len(lists) > 0 {
			return lists[0].Name
		}
	}
	return Bridge
}

func (s *Set) nameFree(name string) error {
	for _, n := range s.all() {
		if n.Config.Name == name {
			return errs.New(errs.Exists, "network %s exists", name)
		}
	}
	return nil
}

// Remove removes a network. It fails with errs.Conflict while containers are
// on it and with errs.Invalid for the builtin ones.
func (s *Set) Remove(ctx context.Context, ref string) error {
	s.change.Lock()
	defer s.change.Unlock()
	found, err := s.Get(ref)
	switch {
	case err != nil:
		return err
	case found.Builtin:
		return errs.New(errs.Invalid, "network %s is builtin and cannot be removed", found.Config.Name)
	case found.Config.Driver == "cni":
		return errs.New(errs.Unsupported, "network %s goes when its file in the CNI configuration folder does", found.Config.Name)
	}
	n, err := s.find(found.ID)
	if err != nil {
		return err
	}
	if err := s.remove(ctx, n); err != nil {
		return fmt.Errorf("remove network %s: %w", n.config.Name, err)
	}
	return nil
}

func (s *Set) remove(ctx context.Context, n *network) error {
	if err := s.closeDoor(ctx, n); err != nil {
		return err
	}
	err := s.cfg.DB.Update(ctx, func(tx *kv.Tx) error { return tx.Delete(bucket, "net/"+n.id) })
	s.mu.Lock()
	if err != nil {
		n.gone = false
		s.mu.Unlock()
		return err
	}
	delete(s.networks, n.id)
	s.mu.Unlock()
	return errors.Join(s.changeZones(), s.lower(n))
}

// closeDoor lets nobody join any more, unless somebody is there.
func (s *Set) closeDoor(ctx context.Context, n *network) error {
	for {
		s.mu.Lock()
		var leaving chan struct{}
		for _, held := range n.leases {
			if held.released == nil {
				err := errs.New(errs.Conflict, "container %s is on it", s.nameOf(held.container))
				s.mu.Unlock()
				return err
			}
			leaving = held.released
		}
		if leaving == nil {
			n.gone = true
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-leaving:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// nameOf a container; the caller holds mu.
func (s *Set) nameOf(container string) string {
	if a := s.attachments[container]; a != nil && a.name != "" {
		return a.name
	}
	return container[:min(12, len(container))]
}

// Prune removes user-defined networks that nobody is on. Filters: label,
// label! and until (a time or an age).
func (s *Set) Prune(ctx context.Context, filter spec.Filter) (spec.Pruned, error) {
	keep, err := pruneFilter(filter, time.Now())
	if err != nil {
		return spec.Pruned{}, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	pruned := spec.Pruned{Removed: []string{}}
	for _, n := range s.byName() {
		if n.builtin() || keep(n) {
			continue
		}
		err := s.remove(ctx, n)
		switch {
		case errors.Is(err, errs.Conflict):
		case err != nil:
			return pruned, fmt.Errorf("remove network %s: %w", n.config.Name, err)
		default:
			pruned.Removed = append(pruned.Removed, n.config.Name)
		}
	}
	return pruned, nil
}

func pruneFilter(filter spec.Filter, now time.Time) (keep func(*network) bool, err error) {
	until := now
	for key, values := range filter {
		switch key {
		case "label", "label!":
		case "until":
			for _, v := range values {
				age, ageErr := time.ParseDuration(v)
				at, timeErr := time.Parse(time.RFC3339, v)
				if ageErr == nil {
					at = now.Add(-age)
				} else if timeErr != nil {
					return nil, errs.New(errs.Invalid, "until=%q: want an age such as 24h, or a time in RFC 3339", v)
				}
				if at.Before(until) {
					until = at
				}
			}
		default:
			return nil, errs.New(errs.Invalid, "networks cannot be pruned by %q: there are label, label! and until", key)
		}
	}
	return func(n *network) bool {
		has := func(l string) bool { return hasLabel(n.config.Labels, l) }
		lacks := func(l string) bool { return !has(l) }
		return n.created.After(until) || slices.ContainsFunc(filter["label"], lacks) || slices.ContainsFunc(filter["label!"], has)
	}, nil
}
