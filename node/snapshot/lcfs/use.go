package lcfs

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// use is what a mount stands on, beside its own upper.
type use struct {
	own    string   // id of the upper that it writes to; "" for none
	uppers []string // ids of unsettled layers
	images []string
	shown  []string // images mounted for other processes
	// target is where it is mounted; "" where that is unknown.
	target string
}

// uses counts what may not be deleted because something is mounted on it. The
// Store's lock guards it. A mount is known by its target; what another process
// mounts, or a process of ours did before this one, by the snapshot's key.
type uses struct {
	held   map[string][]use
	own    map[string]int
	uppers map[string]int
	images map[string]int
	shown  map[string]int
}

func (u *uses) init() {
	u.held = map[string][]use{}
	u.own, u.uppers, u.images, u.shown = map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
}

func byKey(key snapshot.Key) string { return "key " + string(key) }

// byUpper is for what a layer's writer stood on, until it is known to be gone.
func byUpper(id string) string { return "upper " + id }

func byTarget(target string) string { return "target " + absolute(target) }

func absolute(target string) string {
	if absolute, err := filepath.Abs(target); err == nil {
		return absolute
	}
	return filepath.Clean(target)
}

func (u *uses) add(name string, what use) {
	if strings.HasPrefix(name, "key ") && slices.ContainsFunc(u.held[name], what.equal) {
		return // once is enough until the key goes
	}
	u.held[name] = append(u.held[name], what)
	u.count(what, 1)
}

// passOn gives what is held under one name to another, as of no writer.
func (u *uses) passOn(from, to string) {
	for _, what := range u.held[from] {
		u.count(what, -1)
		what.own = ""
		u.held[to] = append(u.held[to], what)
		u.count(what, 1)
	}
	delete(u.held, from)
}

// drop takes the last use of that name away.
func (u *uses) drop(name string) bool {
	held := u.held[name]
	if len(held) == 0 {
		return false
	}
	u.count(held[len(held)-1], -1)
	if held = held[:len(held)-1]; len(held) > 0 {
		u.held[name] = held
	} else {
		delete(u.held, name)
	}
	return true
}

func (a use) equal(b use) bool {
	return a.own == b.own && slices.Equal(a.uppers, b.uppers) && slices.Equal(a.images, b.images) && slices.Equal(a.shown, b.shown)
}

func (u *uses) count(what use, by int) {
	if what.own != "" {
		add(u.own, what.own, by)
	}
	for _, id := range what.uppers {
		add(u.uppers, id, by)
	}
	for _, name := range what.images {
		add(u.images, name, by)
	}
	for _, name := range what.shown {
		add(u.shown, name, by)
	}
}

func add(counts map[string]int, name string, by int) {
	if counts[name] += by; counts[name] == 0 {
		delete(counts, name)
	}
}

// keep holds what a stack stands on under another name, that of a mount. It is
// mounted on target, if that is known.
func (s *Store) keep(st stack, name, target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := st.use()
	what.target = target
	s.uses.add(name, what)
	s.uses.drop(st.held)
}

// dropStaleUses ends the uses of mounts that others have taken down.
func (s *Store) dropStaleUses() {
	s.mu.RLock()
	var targets []string
	for _, held := range s.uses.held {
		if target := held[len(held)-1].target; target != "" {
			targets = append(targets, target)
		}
	}
	s.mu.RUnlock()
	for _, target := range targets {
		if !isUnmounted(target) {
			continue
		}
		s.mu.Lock()
		name := byTarget(target)
		if held := s.uses.held[name]; len(held) > 0 && held[len(held)-1].target != "" {
			s.uses.drop(name)
			s.nudge(s.restless)
		}
		s.mu.Unlock()
	}
}

// isUnmounted says whether for certain nothing is mounted on target.
func isUnmounted(target string) bool {
	var above, at unix.Stat_t
	err := unix.Lstat(target, &at)
	if err == nil {
		err = unix.Lstat(filepath.Dir(target), &above)
	}
	return errs.IsAny(err, unix.ENOENT, unix.ENOTDIR) || err == nil && above.Dev == at.Dev
}

// unuse ends a use, and has deleted what waited for it.
func (s *Store) unuse(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unuseLocked(name)
}

func (s *Store) unuseLocked(name string) {
	for held := s.uses.held[name]; len(held) > 0; held = s.uses.held[name] {
		what := held[len(held)-1]
		s.uses.drop(name)
		if !strings.HasPrefix(name, "read ") || s.isAwaited(what) {
			s.nudge(s.tidy)
		}
		s.nudge(s.restless)
		if name[0] == 't' {
			return // mounts lie on each other there
		}
	}
}

// isAwaited says whether the end of a use lets something go that was held back.
// The Store's lock is held.
func (s *Store) isAwaited(what use) bool {
	for _, id := range what.uppers {
		_, held := s.heldBack[id]
		held = held || slices.ContainsFunc(s.standing, func(l leftover) bool { return l.id == id })
		if held && s.uses.uppers[id] == 0 {
			return true
		}
	}
	for _, name := range what.images {
		if _, held := s.heldBack[name]; held && s.uses.images[name] == 0 {
			return true
		}
	}
	return false
}

// pin keeps all folders and images of key and its chain from being deleted,
// until letGo.
func (s *Store) pin(key snapshot.Key) (_ *record, letGo func(), err error) {
	name := "read " + s.newID()
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.findLocked(key)
	if err != nil {
		return nil, nil, err
	}
	var u use
	for r := rec; r != nil; r = s.byKey[r.Parent] {
		if r.Upper {
			u.uppers = append(u.uppers, r.ID)
		}
		for _, image := range []string{r.Delta, r.Merged} {
			if image != "" {
				u.images = append(u.images, image)
			}
		}
	}
	s.uses.add(name, u)
	return rec, func() { s.unuse(name) }, nil
}
