package content

import (
	"context"
	"crypto/rand"

	api "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/face/containerd/wire"
	"berth/node/lease"
)

// leases is containerd.services.leases.v1.
type leases struct {
	api.UnimplementedLeasesServer
	Config
}

// Create implements LeasesServer. Without an ID it makes one up.
func (s *leases) Create(ctx context.Context, req *api.CreateRequest) (*api.CreateResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	id := req.GetID()
	if id == "" {
		id = rand.Text()
	}
	l, err := s.Leases.Create(ctx, namespace, id, req.GetLabels())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.CreateResponse{Lease: leaseToWire(l)}, nil
}

// Delete implements LeasesServer. With Sync what only this lease held is gone
// when it answers.
func (s *leases) Delete(ctx context.Context, req *api.DeleteRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	err = s.Leases.Delete(ctx, namespace, req.GetID())
	if err == nil && req.GetSync() {
		err = s.Leases.Collect(ctx)
	}
	if err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// List implements LeasesServer.
func (s *leases) List(ctx context.Context, req *api.ListRequest) (*api.ListResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	fits, err := filter(req.GetFilters(), leaseFields)
	if err != nil {
		return nil, wire.Error(err)
	}
	answer := &api.ListResponse{}
	for _, l := range s.Leases.List(namespace) {
		if fits(l) {
			answer.Leases = append(answer.Leases, leaseToWire(l))
		}
	}
	return answer, nil
}

// AddResource implements LeasesServer.
func (s *leases) AddResource(ctx context.Context, req *api.AddResourceRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	if err := s.addResource(ctx, namespace, req.GetID(), resourceOf(req.GetResource())); err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// addResource has a lease hold a resource, be it one of the node's own.
func (c Config) addResource(ctx context.Context, namespace, id string, r lease.Resource) error {
	err := c.Leases.Add(ctx, namespace, id, r)
	if err == nil && r.Kind == lease.Content {
		c.Content.Claim(ctx, namespace, digest.Digest(r.ID))
	}
	return err
}

// DeleteResource implements LeasesServer.
func (s *leases) DeleteResource(ctx context.Context, req *api.DeleteResourceRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	if err := s.Leases.Drop(ctx, namespace, req.GetID(), resourceOf(req.GetResource())); err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// ListResources implements LeasesServer.
func (s *leases) ListResources(ctx context.Context, req *api.ListResourcesRequest) (*api.ListResourcesResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	all, err := s.Leases.Resources(namespace, req.GetID())
	if err != nil {
		return nil, wire.Error(err)
	}
	answer := &api.ListResourcesResponse{}
	for _, r := range all {
		answer.Resources = append(answer.Resources, &api.Resource{ID: r.ID, Type: r.Kind})
	}
	return answer, nil
}

func resourceOf(r *api.Resource) lease.Resource {
	return lease.Resource{Kind: r.GetType(), ID: r.GetID()}
}

func leaseToWire(l lease.Lease) *api.Lease {
	return &api.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: timestamppb.New(l.Created)}
}
