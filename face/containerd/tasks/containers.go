package tasks

import (
	"context"
	"maps"
	"strings"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/labels"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/lease"
	"berth/spec"
)

// Containers is the containers service.
type Containers struct {
	api.UnimplementedContainersServer
	Set    Givens
	Events wire.Publisher
	Leases Leases
}

// Leases keeps what a container refers to from being collected.
type Leases interface {
	// Hold keeps it until release is called.
	Hold(namespace string, all ...lease.Resource) (release func())
	// Trigger says that something may have lost its last reference.
	Trigger()
}

// Register adds the service to a server.
func (s *Containers) Register(r grpc.ServiceRegistrar) { api.RegisterContainersServer(r, s) }

// Get gives one container.
func (s *Containers) Get(ctx context.Context, r *api.GetContainerRequest) (*api.GetContainerResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	g, err := s.Set.Given(ctx, namespace, r.GetID())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.GetContainerResponse{Container: encode(g)}, nil
}

// List gives the containers that any of the filters lets through.
func (s *Containers) List(ctx context.Context, r *api.ListContainersRequest) (*api.ListContainersResponse, error) {
	all, err := s.list(ctx, r.GetFilters())
	return &api.ListContainersResponse{Containers: all}, wire.Error(err)
}

// ListStream gives them one by one, however many there are.
func (s *Containers) ListStream(r *api.ListContainersRequest, stream api.Containers_ListStreamServer) error {
	all, err := s.list(stream.Context(), r.GetFilters())
	for _, c := range all {
		if err = stream.Send(&api.ListContainerMessage{Container: c}); err != nil {
			break
		}
	}
	return wire.Error(err)
}

func (s *Containers) list(ctx context.Context, wanted []string) ([]*api.Container, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, err
	}
	filter, err := filters.ParseAll(wanted...)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	givens, err := s.Set.Givens(ctx, namespace)
	if err != nil {
		return nil, err
	}
	all := make([]*api.Container, 0, len(givens))
	for _, g := range givens {
		if filter.Match(adapt(g)) {
			all = append(all, encode(g))
		}
	}
	return all, nil
}

// adapt lets filters look at a container.
func adapt(g spec.Given) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch {
		case len(path) == 0:
			return "", false
		case path[0] == "id":
			return g.ID, true
		case path[0] == "image":
			return g.Image, g.Image != ""
		case path[0] == "labels":
			value, ok := g.Labels[strings.Join(path[1:], ".")]
			return value, ok
		case len(path) == 2 && path[0] == "runtime" && path[1] == "name":
			return g.Runtime, g.Runtime != ""
		}
		return "", false
	})
}

// Create adds a container.
func (s *Containers) Create(ctx context.Context, r *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	g := decode(namespace, r.GetContainer())
	if err := check(g); err != nil {
		return nil, wire.Error(errs.New(errs.Invalid, "create container failed validation: %w", err))
	}
	defer s.Leases.Hold(namespace, references(g)...)()
	if g, err = s.Set.CreateGiven(ctx, g); err != nil {
		return nil, wire.Error(err)
	}
	s.Events.Publish(ctx, namespace, "/containers/create", &events.ContainerCreate{
		ID: g.ID, Image: g.Image, Runtime: &events.ContainerCreate_Runtime{Name: g.Runtime, Options: wire.Any(g.Options)},
	})
	return &api.CreateContainerResponse{Container: encode(g)}, nil
}

// Update changes what the mask names, or without one all that can be changed.
func (s *Containers) Update(ctx context.Context, r *api.UpdateContainerRequest) (*api.UpdateContainerResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	wanted := decode(namespace, r.GetContainer())
	if wanted.ID == "" {
		return nil, wire.Error(errs.New(errs.Invalid, "Container.ID required"))
	}
	defer s.Leases.Hold(namespace, references(wanted)...)()
	g, err := s.Set.UpdateGiven(ctx, namespace, wanted.ID, func(kept *spec.Given) error {
		return update(kept, wanted, r.GetUpdateMask().GetPaths())
	})
	if err != nil {
		return nil, wire.Error(err)
	}
	s.Events.Publish(ctx, namespace, "/containers/update", &events.ContainerUpdate{
		ID: g.ID, Image: g.Image, Labels: maps.Clone(g.Labels), SnapshotKey: g.SnapshotKey,
	})
	return &api.UpdateContainerResponse{Container: encode(g)}, nil
}

// Delete takes a container away.
func (s *Containers) Delete(ctx context.Context, r *api.DeleteContainerRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	// The node tells of it, as it does when it is removed through other doors.
	if err := s.Set.RemoveGiven(ctx, namespace, r.GetID()); err != nil {
		return nil, wire.Error(err)
	}
	s.Leases.Trigger()
	return &emptypb.Empty{}, nil
}

// update applies a field mask.
func update(kept *spec.Given, wanted spec.Given, paths []string) error {
	if len(paths) == 0 {
		switch {
		case kept.Snapshotter != wanted.Snapshotter:
			return errs.New(errs.Invalid, "container.Snapshotter field is immutable")
		case kept.Runtime != wanted.Runtime:
			return errs.New(errs.Invalid, "container.Runtime.Name field is immutable")
		}
		paths = []string{"labels", "spec", "extensions", "image", "snapshotkey"}
	}
	kept.Labels = maps.Clone(kept.Labels)
	for _, path := range paths {
		if err := set(kept, wanted, path); err != nil {
			return err
		}
	}
	maps.DeleteFunc(kept.Labels, func(_, value string) bool { return value == "" })
	if err := check(*kept); err != nil {
		return errs.New(errs.Invalid, "update failed validation: %w", err)
	}
	return nil
}

func set(kept *spec.Given, wanted spec.Given, path string) error {
	field, key, one := strings.Cut(path, ".")
	switch {
	case field == "labels" && one:
		kept.Labels = with(kept.Labels, key, wanted.Labels[key])
	case field == "extensions" && one:
		kept.Extensions = with(kept.Extensions, key, wanted.Extensions[key])
	case path == "labels":
		kept.Labels = maps.Clone(wanted.Labels)
	case path == "extensions":
		kept.Extensions = wanted.Extensions
	case path == "spec":
		kept.Spec = wanted.Spec
	case path == "image":
		kept.Image = wanted.Image
	case path == "snapshotkey", path == "snapshot_key":
		kept.SnapshotKey = wanted.SnapshotKey
	default:
		return errs.New(errs.Invalid, "cannot update %q field on %q", path, wanted.ID)
	}
	return nil
}

// with is a copy of m in which key is value.
func with[V any](m map[string]V, key string, value V) map[string]V {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]V{}
	}
	m[key] = value
	return m
}

// check says what containerd would not take.
func check(g spec.Given) error {
	if err := wire.Identifier(g.ID); err != nil {
		return errs.New(errs.Invalid, "container.ID: %w", err)
	}
	if _, ok := g.Extensions[""]; ok {
		return errs.New(errs.Invalid, "container.Extension keys must not be zero-length")
	}
	for key, value := range g.Labels {
		if key == "" {
			return errs.New(errs.Invalid, "containers.Labels: a label needs a key")
		}
		if err := labels.Validate(key, value); err != nil {
			return errs.New(errs.Invalid, "containers.Labels: %w", err)
		}
	}
	switch {
	case g.Runtime == "":
		return errs.New(errs.Invalid, "container.Runtime.Name must be set")
	case g.Spec == nil:
		return errs.New(errs.Invalid, "container.Spec must be set")
	case g.SnapshotKey != "" && g.Snapshotter == "":
		return errs.New(errs.Invalid, "container.Snapshotter must be set if container.SnapshotKey is set")
	}
	return nil
}

func encode(g spec.Given) *api.Container {
	c := &api.Container{
		ID: g.ID, Labels: maps.Clone(g.Labels), Image: g.Image,
		Runtime: &api.Container_Runtime{Name: g.Runtime, Options: wire.Any(g.Options)},
		Spec:    wire.Any(g.Spec), Snapshotter: g.Snapshotter, SnapshotKey: g.SnapshotKey, Sandbox: g.Sandbox,
		CreatedAt: timestamppb.New(g.Created), UpdatedAt: timestamppb.New(g.Updated),
	}
	if len(g.Extensions) > 0 {
		c.Extensions = make(map[string]*anypb.Any, len(g.Extensions))
	}
	for key, value := range g.Extensions {
		c.Extensions[key] = wire.Any(&value)
	}
	return c
}

func decode(namespace string, c *api.Container) spec.Given {
	g := spec.Given{
		Namespace: namespace, ID: c.GetID(), Labels: c.GetLabels(), Image: c.GetImage(),
		Runtime: c.GetRuntime().GetName(), Options: wire.FromAny(c.GetRuntime().GetOptions()), Spec: wire.FromAny(c.GetSpec()),
		Snapshotter: c.GetSnapshotter(), SnapshotKey: c.GetSnapshotKey(), Sandbox: c.GetSandbox(),
	}
	maps.DeleteFunc(g.Labels, func(_, value string) bool { return value == "" })
	if len(c.GetExtensions()) > 0 {
		g.Extensions = make(map[string]spec.Opaque, len(c.GetExtensions()))
	}
	for key, value := range c.GetExtensions() {
		g.Extensions[key] = spec.Opaque{Type: value.GetTypeUrl(), Value: value.GetValue()}
	}
	return g
}
