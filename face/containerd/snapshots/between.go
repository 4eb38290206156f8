package snapshots

import (
	"context"
	"io"

	"berth/node/snapshot"
)

// Change is what one snapshot changes against another.
type Change struct {
	store snapshot.Store
	key   snapshot.Key
}

// WriteTar writes it as the tar of a layer, the same change always as the same
// bytes.
func (c Change) WriteTar(ctx context.Context, w io.Writer) error { return c.store.Diff(ctx, c.key, w) }

// Between finds what the snapshot that upper shows changes against that which
// lower shows; ok is false where these are not ours, or upper does not stand
// on lower. No mounts at all show an empty tree.
func (s *Service) Between(ctx context.Context, lower, upper []snapshot.Mount) (_ Change, ok bool, _ error) {
	u := s.shown(upper)
	if u == nil || u.shifted() {
		return Change{}, false, nil
	}
	if err := s.spread(ctx, u.name()); err != nil {
		return Change{}, false, err
	}
	top, err := s.store.Stat(ctx, u.Store)
	if err != nil {
		return Change{}, false, err
	}
	var below snapshot.Key
	if len(lower) > 0 {
		l := s.shown(lower)
		if l == nil || l.Kind != snapshot.KindView || l.shifted() {
			return Change{}, false, nil
		}
		info, err := s.store.Stat(ctx, l.Store)
		if err != nil {
			return Change{}, false, err
		}
		below = info.Parent
	}
	if top.Parent == below { // an active one; or a view, which changes nothing
		return Change{s.store, u.Store}, true, nil
	}
	if u.Kind != snapshot.KindView || top.Parent == "" {
		return Change{}, false, nil
	}
	layer, err := s.store.Stat(ctx, top.Parent)
	if err != nil {
		return Change{}, false, err
	}
	return Change{s.store, top.Parent}, layer.Parent == below, nil
}
