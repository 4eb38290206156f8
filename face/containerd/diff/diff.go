// Package diff answers containerd's diff service: it unpacks layers into
// snapshots and makes layers out of what was changed in them.
//
// Both work on mounts. Where these show snapshots of the node's own, nothing is
// mounted: a layer's tar goes straight into the store, and the store knows what
// a snapshot changes. Anything else is written and compared as containerd does
// it, by its own library.
package diff

import (
	"context"
	"fmt"
	"log/slog"

	api "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"berth/face/containerd/snapshots"
	"berth/face/containerd/wire"
	"berth/image/blob"
	"berth/node/snapshot"
)

// Snapshots are the node's own. Apply is Unsupported, and Between not ok, where
// mounts are not of its snapshots.
type Snapshots interface {
	Apply(ctx context.Context, mounts []snapshot.Mount, blob digest.Digest, open func(context.Context) (snapshots.Tar, error)) (snapshots.Applied, error)
	Between(ctx context.Context, lower, upper []snapshot.Mount) (snapshots.Change, bool, error)
}

// Config says on what the Service stands.
type Config struct {
	Content   content.Store // by the namespace and the lease of the context
	Snapshots Snapshots
	// MaxLayer bounds what one layer may unpack to; blob.DefaultLimit when 0.
	MaxLayer int64
	Log      *slog.Logger
}

// Service is the diff service. It is also containerd's diff.Applier and
// diff.Comparer.
type Service struct {
	Config
	applier  diff.Applier
	comparer diff.Comparer
}

// New makes the service.
func New(c Config) *Service {
	if c.MaxLayer == 0 {
		c.MaxLayer = blob.DefaultLimit
	}
	return &Service{Config: c, applier: apply.NewFileSystemApplier(c.Content), comparer: walking.NewWalkingDiff(c.Content)}
}

// Register makes the service one of server's.
func (s *Service) Register(server grpc.ServiceRegistrar) {
	api.RegisterDiffServer(server, differ{Service: s})
}

// differ is the Service with the methods of the protocol.
type differ struct {
	api.UnimplementedDiffServer
	*Service
}

// Apply unpacks a layer.
func (d differ) Apply(ctx context.Context, r *api.ApplyRequest) (*api.ApplyResponse, error) {
	if _, err := wire.Namespace(ctx); err != nil {
		return nil, wire.Error(err)
	}
	payloads := map[string]typeurl.Any{}
	for id, payload := range r.Payloads {
		payloads[id] = payload
	}
	applied, err := d.Service.Apply(ctx, oci.DescriptorFromProto(r.Diff), mount.FromProto(r.Mounts), diff.WithPayloads(payloads), diff.WithSyncFs(r.SyncFs))
	if err != nil {
		return nil, wire.Error(fmt.Errorf("apply layer: %w", err))
	}
	return &api.ApplyResponse{Applied: oci.DescriptorToProto(applied)}, nil
}

// Diff makes a layer.
func (d differ) Diff(ctx context.Context, r *api.DiffRequest) (*api.DiffResponse, error) {
	if _, err := wire.Namespace(ctx); err != nil {
		return nil, wire.Error(err)
	}
	opts := []diff.Opt{diff.WithMediaType(r.MediaType), diff.WithReference(r.Ref), diff.WithLabels(r.Labels)}
	if r.SourceDateEpoch != nil {
		at := r.SourceDateEpoch.AsTime()
		opts = append(opts, diff.WithSourceDateEpoch(&at))
	}
	made, err := d.Compare(ctx, mount.FromProto(r.Left), mount.FromProto(r.Right), opts...)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("diff: %w", err))
	}
	return &api.DiffResponse{Diff: oci.DescriptorToProto(made)}, nil
}

// ours makes the store's mounts of containerd's.
func ours(mounts []mount.Mount) []snapshot.Mount {
	all := make([]snapshot.Mount, len(mounts))
	for i, m := range mounts {
		if m.Target != "" {
			return nil // a part of a tree
		}
		all[i] = snapshot.Mount{Type: m.Type, Source: m.Source, Options: m.Options}
	}
	return all
}
