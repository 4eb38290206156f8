package containerd

import (
	"context"
	"slices"
	"strings"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Mounts says how containerd mounts an active snapshot or a view.
func (s *Snapshots) Mounts(ctx context.Context, r *api.MountsRequest) (*api.MountsResponse, error) {
	rec, err := s.look(name{r.Snapshotter, r.Key})
	if err == nil && rec.Kind == snapshot.KindCommitted {
		err = errs.New(errs.Conflict, "snapshot %q is committed, neither active nor a view", r.Key)
	}
	var mounts []snapshot.Mount
	if err == nil {
		mounts, err = s.store.Mounts(ctx, rec.Store)
	}
	return &api.MountsResponse{Mounts: toMount(mounts)}, failed("mounts of snapshot", err)
}

// toMount puts mounts into containerd's words for who mounts them.
//
// containerd likes to look into a single overlay by itself, without mounting
// it, for the names of users, say. Where bodies of files are not in the layers
// but in a folder beside them it would see empty files. A second mount, which
// changes nothing, makes it mount the first to look.
func toMount(mounts []snapshot.Mount) []*types.Mount {
	out := make([]*types.Mount, 0, len(mounts)+1)
	for _, m := range mounts {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	if len(mounts) != 1 || !slices.ContainsFunc(mounts[0].Options, hasBodiesBeside) {
		return out
	}
	nothing := &types.Mount{Type: "none", Source: "none", Options: []string{"remount"}}
	if slices.Contains(mounts[0].Options, "ro") {
		nothing.Options = append(nothing.Options, "ro")
	}
	return append(out, nothing)
}

// toUnpack puts mounts into containerd's words for unpacking a layer. It
// writes into the upper folder of a single overlay, without mounting it, and
// looks into the layers for the looks of folders that the layer takes for
// granted. A folder of bodies would mislead it there; without it a mount, which
// nobody makes for this, could not read files of the layers.
func toUnpack(mounts []snapshot.Mount) []*types.Mount {
	out := make([]*types.Mount, 0, len(mounts))
	for _, m := range mounts {
		options := slices.Clone(m.Options)
		for i, option := range options {
			if hasBodiesBeside(option) {
				options[i], _, _ = strings.Cut(option, beside)
			}
		}
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Options: options})
	}
	return out
}

// beside is what overlayfs wants between layers and folders of bodies.
const beside = "::"

func hasBodiesBeside(option string) bool {
	return strings.HasPrefix(option, "lowerdir=") && strings.Contains(option, beside)
}
