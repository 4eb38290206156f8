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
	held       string // the name of its use
	lowers     []lower
	upper      string // id; "" for a View
	volatile   bool
	lacks      bool // bodies are missing
	uids, gids []snapshot.IDMap
}

// take finds the stack of an Active snapshot or a View. All that it stands on
// is held until keep or unuse.
func (s *Store) take(key snapshot.Key) (*record, stack, error) {
	name := "take " + s.newID()
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
	st := stack{held: name, lowers: lowers, lacks: s.lacksLocked(rec.Parent)}
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

// simple says whether overlayfs can put the stack together: there must be one
// image at most, at the bottom. For without metacopy overlayfs looks for bodies
// in the objects only from the lowest lower; with it, it first looks for them
// in all lowers below, under the names that they have among the objects, and
// whoever made one of those could plant another body.
func (st stack) simple() bool {
	for i, l := range st.lowers {
		if l.image != "" && i < len(st.lowers)-1 {
			return false
		}
	}
	return true
}

// mergeTries is how often a mount merges before it gives up: what it has merged
// may be found damaged, and dropped, meanwhile.
const mergeTries = 5

// ready takes the stack of key, after it has merged the images in it where
// that is needed.
func (s *Store) ready(ctx context.Context, key snapshot.Key) (*record, stack, error) {
	for range mergeTries {
		rec, st, err := s.take(key)
		if err != nil || st.simple() {
			return rec, st, err
		}
		s.unuse(st.held)
		if err := s.mergeStack(ctx, st, rec.Parent); err != nil {
			return nil, stack{}, err
		}
	}
	return nil, stack{}, errs.New(errs.Unavailable, "its layers are merged, but not for long enough to be mounted")
}

// mergeStack makes one image of the topmost of a stack and all below it.
func (s *Store) mergeStack(ctx context.Context, st stack, top snapshot.Key) error {
	for _, l := range st.lowers {
		if l.image == "" {
			continue
		}
		if err := s.settleChain(ctx, l.key); err != nil {
			return err
		}
		return s.mergeChain(ctx, l.key, l.key == top)
	}
	return nil
}
