package containerd

import (
	"context"
	"maps"
	"strings"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/pkg/labels"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/lease"
	"berth/node/namespace"
)

// Namespaces is the namespaces service.
type Namespaces struct {
	api.UnimplementedNamespacesServer
	Set    *namespace.Set
	Events wire.Publisher
	// Leases go with the namespace that they are in.
	Leases interface {
		List(namespace string) []lease.Lease
		Delete(ctx context.Context, namespace, id string) error
	}
}

// Register adds the service to a server.
func (s *Namespaces) Register(r grpc.ServiceRegistrar) { api.RegisterNamespacesServer(r, s) }

// Get gives the labels of a namespace. One that nobody has used yet has none:
// clients ask before they make the first thing in it.
func (s *Namespaces) Get(_ context.Context, r *api.GetNamespaceRequest) (*api.GetNamespaceResponse, error) {
	n, _ := s.Set.Get(r.GetName())
	n.Name = r.GetName()
	return &api.GetNamespaceResponse{Namespace: encode(n)}, nil
}

// List gives all namespaces, by name. No client filters them.
func (s *Namespaces) List(context.Context, *api.ListNamespacesRequest) (*api.ListNamespacesResponse, error) {
	answer := &api.ListNamespacesResponse{}
	for _, n := range s.Set.List() {
		answer.Namespaces = append(answer.Namespaces, encode(n))
	}
	return answer, nil
}

// Create makes a namespace.
func (s *Namespaces) Create(ctx context.Context, r *api.CreateNamespaceRequest) (*api.CreateNamespaceResponse, error) {
	n := namespace.Namespace{Name: r.GetNamespace().GetName(), Labels: r.GetNamespace().GetLabels()}
	if err := wire.Identifier(n.Name); err != nil {
		return nil, wire.Error(err)
	}
	if err := checkLabels(n.Labels); err != nil {
		return nil, wire.Error(err)
	}
	if err := s.Set.Create(ctx, n); err != nil {
		return nil, wire.Error(err)
	}
	s.Events.Publish(ctx, n.Name, "/namespaces/create", &events.NamespaceCreate{Name: n.Name, Labels: n.Labels})
	return &api.CreateNamespaceResponse{Namespace: encode(n)}, nil
}

// Update sets the labels of a namespace, all or those that the mask names; an
// empty one is taken away.
func (s *Namespaces) Update(ctx context.Context, r *api.UpdateNamespaceRequest) (*api.UpdateNamespaceResponse, error) {
	name, wanted := r.GetNamespace().GetName(), r.GetNamespace().GetLabels()
	paths := r.GetUpdateMask().GetPaths()
	for _, path := range paths {
		if !strings.HasPrefix(path, "labels.") {
			return nil, wire.Error(errs.New(errs.Invalid, "cannot update %q field", path))
		}
	}
	if err := wire.Identifier(name); err != nil {
		return nil, wire.Error(err)
	}
	if err := checkLabels(wanted); err != nil {
		return nil, wire.Error(err)
	}
	if err := s.Set.Ensure(ctx, name); err != nil {
		return nil, wire.Error(err)
	}
	n, err := s.Set.SetLabels(ctx, name, func(kept map[string]string) {
		if len(paths) == 0 {
			clear(kept)
			maps.Copy(kept, wanted)
		}
		for _, path := range paths {
			key := strings.TrimPrefix(path, "labels.")
			kept[key] = wanted[key]
		}
		maps.DeleteFunc(kept, func(_, value string) bool { return value == "" })
	})
	if err != nil {
		return nil, wire.Error(err)
	}
	s.Events.Publish(ctx, name, "/namespaces/update", &events.NamespaceUpdate{Name: name, Labels: wanted})
	return &api.UpdateNamespaceResponse{Namespace: encode(n)}, nil
}

// Delete takes a namespace away in which there is nothing.
func (s *Namespaces) Delete(ctx context.Context, r *api.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	if err := s.Set.Delete(ctx, r.GetName()); err != nil {
		return nil, wire.Error(err)
	}
	for _, l := range s.Leases.List(r.GetName()) {
		if err := s.Leases.Delete(ctx, l.Namespace, l.ID); err != nil && errs.KindOf(err) != errs.NotFound {
			return nil, wire.Error(err)
		}
	}
	s.Events.Publish(ctx, r.GetName(), "/namespaces/delete", &events.NamespaceDelete{Name: r.GetName()})
	return &emptypb.Empty{}, nil
}

func encode(n namespace.Namespace) *api.Namespace {
	return &api.Namespace{Name: n.Name, Labels: maps.Clone(n.Labels)}
}

func checkLabels(all map[string]string) error {
	for key, value := range all {
		if key == "" {
			return errs.New(errs.Invalid, "namespace.Labels: a label needs a key")
		}
		if err := labels.Validate(key, value); err != nil {
			return errs.New(errs.Invalid, "namespace.Labels: %w", err)
		}
	}
	return nil
}
