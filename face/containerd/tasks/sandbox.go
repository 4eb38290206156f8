package tasks

import (
	"context"
	"maps"
	"strings"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/labels"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/lease"
	"berth/node/sandbox"
	"berth/spec"
)

// Sandboxes are the services of sandboxes: their store and their controller.
type Sandboxes struct {
	Set    *sandbox.Set
	Events wire.Publisher
	Leases Leases
	// Plain says whether a runtime's containers are processes of this machine.
	Plain func(runtime string) bool
}

// Register adds the services to a server.
func (s *Sandboxes) Register(r grpc.ServiceRegistrar) {
	api.RegisterStoreServer(r, sandboxStore{Sandboxes: s})
	api.RegisterControllerServer(r, sandboxController{Sandboxes: s})
}

type sandboxStore struct {
	api.UnimplementedStoreServer
	*Sandboxes
}

// Create adds a sandbox.
func (s sandboxStore) Create(ctx context.Context, r *api.StoreCreateRequest) (*api.StoreCreateResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	one := decodeSandbox(namespace, r.GetSandbox())
	if err := checkSandbox(one); err != nil {
		return nil, wire.Error(err)
	}
	defer s.Leases.Hold(namespace, lease.References(one.Labels)...)()
	if one, err = s.Set.Create(ctx, one); err != nil {
		return nil, wire.Error(err)
	}
	return &api.StoreCreateResponse{Sandbox: encodeSandbox(one)}, nil
}

// Get gives one sandbox.
func (s sandboxStore) Get(ctx context.Context, r *api.StoreGetRequest) (*api.StoreGetResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	one, err := s.Set.Get(namespace, r.GetSandboxID())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.StoreGetResponse{Sandbox: encodeSandbox(one)}, nil
}

// List gives the sandboxes that any of the filters lets through.
func (s sandboxStore) List(ctx context.Context, r *api.StoreListRequest) (*api.StoreListResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	filter, err := filters.ParseAll(r.GetFilters()...)
	if err != nil {
		return nil, wire.Error(errs.New(errs.Invalid, "%w", err))
	}
	answer := &api.StoreListResponse{}
	for _, one := range s.Set.List(namespace) {
		if filter.Match(adaptSandbox(one)) {
			answer.List = append(answer.List, encodeSandbox(one))
		}
	}
	return answer, nil
}

// Update changes what the fields name, or without any all that can be changed.
func (s sandboxStore) Update(ctx context.Context, r *api.StoreUpdateRequest) (*api.StoreUpdateResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	wanted := decodeSandbox(namespace, r.GetSandbox())
	defer s.Leases.Hold(namespace, lease.References(wanted.Labels)...)()
	one, err := s.Set.Update(ctx, namespace, wanted.ID, func(kept *sandbox.Sandbox) error {
		return updateSandbox(kept, wanted, r.GetFields())
	})
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.StoreUpdateResponse{Sandbox: encodeSandbox(one)}, nil
}

// Delete forgets a sandbox.
func (s sandboxStore) Delete(ctx context.Context, r *api.StoreDeleteRequest) (*api.StoreDeleteResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	if err := s.Set.Delete(ctx, namespace, r.GetSandboxID()); err != nil {
		return nil, wire.Error(err)
	}
	s.Leases.Trigger()
	return &api.StoreDeleteResponse{}, nil
}

// updateSandbox applies field paths.
func updateSandbox(kept *sandbox.Sandbox, wanted sandbox.Sandbox, paths []string) error {
	if len(paths) == 0 {
		if kept.Runtime != wanted.Runtime {
			return errs.New(errs.Invalid, "sandbox.Runtime.Name field is immutable")
		}
		paths = []string{"labels", "extensions", "spec", "runtime"}
	}
	for _, path := range paths {
		field, key, one := strings.Cut(path, ".")
		switch {
		case field == "labels" && one:
			kept.Labels = with(kept.Labels, key, wanted.Labels[key])
		case field == "extensions" && one:
			kept.Extensions = with(kept.Extensions, key, wanted.Extensions[key])
		case path == "labels":
			kept.Labels = wanted.Labels
		case path == "extensions":
			kept.Extensions = wanted.Extensions
		case path == "runtime":
			kept.Runtime, kept.Options = wanted.Runtime, wanted.Options
		case path == "spec":
			kept.Spec = wanted.Spec
		default:
			return errs.New(errs.Invalid, "cannot update %q field on sandbox %q", path, wanted.ID)
		}
	}
	return checkSandbox(*kept)
}

func checkSandbox(one sandbox.Sandbox) error {
	if err := wire.Identifier(one.ID); err != nil {
		return errs.New(errs.Invalid, "invalid sandbox ID: %w", err)
	}
	for key, value := range one.Labels {
		if err := labels.Validate(key, value); err != nil {
			return errs.New(errs.Invalid, "sandbox.Labels: %w", err)
		}
	}
	return nil
}

// adaptSandbox lets filters look at a sandbox.
func adaptSandbox(one sandbox.Sandbox) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch {
		case len(path) == 0:
			return "", false
		case path[0] == "id":
			return one.ID, true
		case path[0] == "labels":
			value, ok := one.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}

func encodeSandbox(one sandbox.Sandbox) *types.Sandbox {
	made := &types.Sandbox{
		SandboxID: one.ID, Labels: maps.Clone(one.Labels), Sandboxer: one.Controller,
		Runtime: &types.Sandbox_Runtime{Name: one.Runtime, Options: wire.Any(one.Options)}, Spec: wire.Any(one.Spec),
		CreatedAt: timestamppb.New(one.Created), UpdatedAt: timestamppb.New(one.Updated),
		Extensions: map[string]*anypb.Any{},
	}
	for key, value := range one.Extensions {
		made.Extensions[key] = wire.Any(&value)
	}
	return made
}

func decodeSandbox(namespace string, s *types.Sandbox) sandbox.Sandbox {
	one := sandbox.Sandbox{
		Namespace: namespace, ID: s.GetSandboxID(), Labels: lease.WithoutEmpty(s.GetLabels()), Controller: s.GetSandboxer(),
		Runtime: s.GetRuntime().GetName(), Options: wire.FromAny(s.GetRuntime().GetOptions()), Spec: wire.FromAny(s.GetSpec()),
		Extensions: map[string]spec.Opaque{},
	}
	for key, value := range s.GetExtensions() {
		one.Extensions[key] = spec.Opaque{Type: value.GetTypeUrl(), Value: value.GetValue()}
	}
	return one
}

// SandboxOwner tells the collector what sandboxes refer to. They are roots.
type SandboxOwner struct{ Set *sandbox.Set }

// Items implements lease.Owner.
func (o SandboxOwner) Items(_ context.Context, fn func(lease.Item)) error {
	for _, one := range o.Set.List("") {
		fn(lease.Item{Namespace: one.Namespace, Resource: lease.Resource{Kind: lease.Sandboxes, ID: one.ID}, Labels: one.Labels, Root: true})
	}
	return nil
}

// Remove implements lease.Owner.
func (o SandboxOwner) Remove(_ context.Context, _ string, r lease.Resource) error {
	return errs.New(errs.Conflict, "sandbox %s is not removed but by its client", r.ID)
}
