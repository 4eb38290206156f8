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
	key   snapshot.Key // of the layer
}

// stack is what overlayfs puts together, the topmost lower first; the objects
// are below all.
type stack struct {
	lowers     []lower
	upper      string // id; "" for a View
	volatile   bool
	lacks      bool // bodies are missing
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
	st := stack{lowers: lowers, lacks: s.lacksLocked(rec.Parent)}
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

// lowersLocked lists what makes up the tree of key: of a settled layer its
// folder while it is there, for images are best merged ones. mu is held.
func (s *Store) lowersLocked(key snapshot.Key) ([]lower, error) {
	var lowers []lower
	for key != "" {
		rec, err := s.findLocked(key)
		if err != nil {
			return nil, errs.New(errs.NotFound, "layer %s was lost", key)
		}
		switch {
		case rec.Merged != "":
			return append(lowers, lower{image: rec.Merged, key: key}), nil
		case rec.Upper:
			lowers = append(lowers, lower{id: rec.ID, key: key})
		default:
			lowers = append(lowers, lower{image: rec.Delta, key: key})
		}
		if rec.Opaque {
			break
		}
		key = rec.Parent
	}
	return lowers, nil
}

// simple says whether overlayfs can put the stack together. Without metacopy
// it looks for bodies in the objects only from the lowest lower: there must be
// one image, at the bottom. With it, there must not be too many.
func (s *Store) simple(st stack) bool {
	if s.metacopy {
		return len(st.lowers) <= maxLowers+maxUnsettled
	}
	for i, l := range st.lowers {
		if l.image != "" && i < len(st.lowers)-1 {
			return false
		}
	}
	return true
}

// ready takes the stack of key, after it has merged the images in it where
// that is needed.
func (s *Store) ready(ctx context.Context, key snapshot.Key, name string) (*record, stack, error) {
	rec, st, err := s.take(key, name)
	if err != nil || len(st.lowers) <= 1 {
		return rec, st, err
	}
	if s.simple(st) {
		return rec, st, nil
	}
	s.unuse(name)
	for _, l := range st.lowers {
		if l.image == "" {
			continue
		}
		if err := s.settleChain(ctx, l.key); err != nil {
			return nil, stack{}, err
		}
		if err := s.mergeChain(ctx, l.key, l.key == rec.Parent); err != nil {
			return nil, stack{}, err
		}
		break
	}
	return s.take(key, name)
}
