package snapshots

import (
	"context"
	"strings"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Mounts says how containerd mounts an active snapshot or a view.
func (s *Service) Mounts(ctx context.Context, r *api.MountsRequest) (*api.MountsResponse, error) {
	rec, err := s.requested(ctx, r.Snapshotter, r.Key)
	if err == nil && (rec.Kind == snapshot.KindCommitted || rec.committing) {
		err = errs.New(errs.Conflict, "snapshot %q is committed, neither active nor a view", r.Key)
	}
	if err == nil {
		err = s.spread(ctx, rec.name())
	}
	var mounts []*types.Mount
	if err == nil {
		mounts, err = s.mounts(ctx, rec.Store)
	}
	return &api.MountsResponse{Mounts: mounts}, failed("mounts of snapshot", err)
}

func (s *Service) mounts(ctx context.Context, key snapshot.Key) ([]*types.Mount, error) {
	if s.trees != nil {
		mounts, err := s.trees.Mounts(ctx, key)
		return described(mounts), err
	}
	mounts, err := s.store.Mounts(ctx, key)
	return described(mounts), err
}

// mountsToUnpack says how containerd gets at a tree that it unpacks a layer
// into. It writes into the upper folder of an overlay, without mounting it, and
// looks into the layers for the looks of folders that the layer takes for
// granted. A folder of bodies beside the layers would mislead it there; without
// it a mount, which nobody makes for this, could not read files of the layers.
func (s *Service) mountsToUnpack(ctx context.Context, key snapshot.Key) ([]*types.Mount, error) {
	mounts, err := s.store.Mounts(ctx, key)
	for _, m := range mounts {
		for i, option := range m.Options {
			if strings.HasPrefix(option, "lowerdir=") {
				m.Options[i], _, _ = strings.Cut(option, "::")
			}
		}
	}
	return described(mounts), err
}

func described(mounts []snapshot.Mount) []*types.Mount {
	out := make([]*types.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = &types.Mount{Type: m.Type, Source: m.Source, Options: m.Options}
	}
	return out
}
