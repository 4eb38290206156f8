package mounts

import (
	"context"
	"maps"

	api "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/mount/proxy"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"berth/base/errs"
	"berth/node/lease"
)

// kind is what the collector calls mounts.
const kind = "mounts"

func resource(id string) lease.Resource { return lease.Resource{Kind: kind, ID: id} }

// load learns what is active, in all namespaces, and has what is left of others
// taken down.
func (s *Service) load(ctx context.Context) error {
	library, ok := s.mounts.(metadata.Collector)
	if !ok {
		return errs.New(errs.Internal, "%T cannot say what it has mounted", s.mounts)
	}
	all, err := library.StartCollection(ctx)
	if err != nil {
		return err
	}
	found := map[string]bool{}
	all.All(func(n gc.Node) { found[n.Namespace] = true })
	if err := all.Finish(); err != nil {
		return err
	}
	for namespace := range found {
		list, err := s.mounts.List(namespaces.WithNamespace(ctx, namespace))
		if err != nil {
			return err
		}
		for _, info := range list {
			s.active[name{namespace, info.Name}] = info.Labels
		}
	}
	return nil
}

// Items tells the collector what is active.
func (s *Service) Items(ctx context.Context, fn func(lease.Item)) error {
	s.mu.Lock()
	active := maps.Clone(s.active)
	s.mu.Unlock()
	for n, labels := range active {
		leased := false
		if id := labels[leaseLabel]; id != "" {
			_, err := s.leases.Get(n.namespace, id)
			leased = err == nil
		}
		fn(lease.Item{Namespace: n.namespace, Resource: resource(n.name), Labels: labels, Root: leased})
	}
	return ctx.Err()
}

// Remove takes down what is active under a name.
func (s *Service) Remove(ctx context.Context, namespace string, r lease.Resource) error {
	return s.deactivate(namespaces.WithNamespace(ctx, namespace), name{namespace, r.ID})
}

func (s *Service) deactivate(ctx context.Context, n name) error {
	err := s.mounts.Deactivate(ctx, n.name)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	s.mu.Lock()
	delete(s.active, n)
	s.mu.Unlock()
	if err != nil {
		return errs.New(errs.NotFound, "mounts %.80q: %w", n.name, err)
	}
	return nil
}

// described is what clients see of what is active.
func described(info mount.ActivationInfo) *api.ActivationInfo {
	info.Labels = maps.Clone(info.Labels)
	delete(info.Labels, leaseLabel)
	return proxy.ActivationInfoToProto(info)
}
