package tasks

import (
	"context"

	"berth/base/errs"
	"berth/node/lease"
	"berth/spec"
)

// Owner tells the collector what containers refer to. They are roots: only
// their clients remove them.
type Owner struct{ Set Givens }

var _ lease.Owner = Owner{}

// Items implements lease.Owner.
func (o Owner) Items(ctx context.Context, fn func(lease.Item)) error {
	all, err := o.Set.Givens(ctx, "")
	if err != nil {
		return err
	}
	for _, g := range all {
		fn(lease.Item{
			Namespace: g.Namespace, Resource: lease.Resource{Kind: lease.Containers, ID: g.ID},
			Labels: g.Labels, Refs: snapshotOf(g), Root: true,
		})
	}
	return nil
}

// Remove implements lease.Owner.
func (o Owner) Remove(_ context.Context, _ string, r lease.Resource) error {
	return errs.New(errs.Conflict, "container %s is not removed but by its client", r.ID)
}

// references are all that a container refers to.
func references(g spec.Given) []lease.Resource {
	return append(snapshotOf(g), lease.References(g.Labels)...)
}

// snapshotOf is the snapshot that is a container's root file system.
func snapshotOf(g spec.Given) []lease.Resource {
	if g.SnapshotKey == "" {
		return nil
	}
	return []lease.Resource{{Kind: lease.Snapshots(g.Snapshotter), ID: g.SnapshotKey}}
}
