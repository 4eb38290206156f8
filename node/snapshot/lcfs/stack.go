package lcfs

import (
	"context"

	"berth/base/errs"
	"berth/node/snapshot"
)

// lower is one layer of a mount below the upper: an image, or the folder of an
// unsettled layer.
type lower struct {
	image string
	id    string
}

// stack is what overlayfs puts together, the topmost lower first; the objects
// are below all.
type stack struct {
	lowers     []lower
	upper      string // id; "" for a View
	volatile   bool
	uids, gids []snapshot.IDMap
}

// maxLowers is how many lowers a mount takes before its chain is merged first.
const maxLowers = 24

// take finds the stack of an Active snapshot or a View and marks all that it
// stands on as used under that name, until unuse.
func (s *Store) take(key snapshot.Key, name string) (*record, stack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.findLocked(key)
	if err != nil {
		return nil, stack{}, err
	}
	if rec.Kind == snapshot.KindCommitted {
		return nil, stack{}, errs.New(errs.Conflict, "snapshot %s is committed: make a view of it", key)
	}
	lowers, err := s.lowersLocked(rec.Parent)
	if err != nil {
		return nil, stack{}, err
	}
	st := stack{lowers: lowers}
	if rec.Kind == snapshot.KindActive {
		st.upper, st.volatile = rec.ID, rec.Labels[snapshot.Volatile] != ""
	}
	if st.uids, st.gids, err = snapshot.IDMaps(rec.Labels); err != nil {
		return nil, stack{}, err
	}
	s.uses.add(name, st.use())
	return rec, st, nil
}

func (st stack) use() use {
	u := use{own: st.upper}
	for _, l := range st.lowers {
		if l.image != "" {
			u.images = append(u.images, l.image)
		} else {
			u.uppers = append(u.uppers, l.id)
		}
	}
	return u
}

// lowersLocked lists what makes up the tree of key. mu is held.
func (s *Store) lowersLocked(key snapshot.Key) ([]lower, error) {
	var lowers []lower
	for key != "" {
		rec, err := s.findLocked(key)
		if err != nil {
			return nil, errs.New(errs.NotFound, "layer %s was lost", key)
		}
		switch {
		case rec.Merged != "":
			return append(lowers, lower{image: rec.Merged}), nil
		case rec.isSettled():
			lowers = append(lowers, lower{image: rec.Delta})
		default:
			lowers = append(lowers, lower{id: rec.ID})
		}
		if rec.Opaque {
			break
		}
		key = rec.Parent
	}
	return lowers, nil
}

// ready takes the stack of key, after it has seen to it that few lowers make
// it up. A chain that a mount found unmerged is merged soon.
func (s *Store) ready(ctx context.Context, key snapshot.Key, name string, most int) (*record, stack, error) {
	rec, st, err := s.take(key, name)
	if err != nil || len(st.lowers) <= 1 {
		return rec, st, err
	}
	if len(st.lowers) <= most || !st.mergeable() {
		s.wantMerged(rec.Parent)
		return rec, st, nil
	}
	s.unuse(name)
	if err := s.mergeChain(ctx, rec.Parent, true); err != nil {
		return nil, stack{}, err
	}
	return s.take(key, name)
}

// mergeable says whether merging makes the stack smaller: folders on top must
// be settled first.
func (st stack) mergeable() bool {
	settled := 0
	for _, l := range st.lowers {
		if l.image != "" {
			settled++
		}
	}
	return settled == len(st.lowers)
}
