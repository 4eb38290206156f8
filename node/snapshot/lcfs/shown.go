package lcfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// shownImages are EROFS images mounted below mnt/, for processes that mount by
// names. They stay when the store is closed.
type shownImages struct {
	dir string
	mu  sync.Mutex
}

func (sh *shownImages) init(dir string) { sh.dir = dir }

// close leaves the mounts: others stand on them.
func (sh *shownImages) close() error { return nil }

// shortName is the folder of an image in mnt/: options must fit in a page, and
// nobody may find two images of one name.
func shortName(image string) string { return image[:32] }

func (sh *shownImages) show(im *images, name string) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	target := filepath.Join(sh.dir, shortName(name))
	if isMountpoint(sh.dir, target) {
		return nil
	}
	if err := os.Mkdir(target, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	mount, err := im.mount(name)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return attach(mount, target)
}

func isMountpoint(parent, dir string) bool {
	var above, at unix.Stat_t
	return unix.Lstat(parent, &above) == nil && unix.Lstat(dir, &at) == nil && above.Dev != at.Dev
}

// hide takes down the images that used does not know.
func (sh *shownImages) hide(used func(short string) bool) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	entries, err := os.ReadDir(sh.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if used(e.Name()) {
			continue
		}
		target := filepath.Join(sh.dir, e.Name())
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errs.IsAny(err, unix.EINVAL, unix.ENOENT) {
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
		if err := unix.Rmdir(target); err != nil && !errs.IsAny(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: target, Err: err}
		}
	}
	return nil
}

// pageRoom is what fits into the options of mount(2), with room for what a
// caller adds.
const pageRoom = 3500

// Mounts says how another process mounts the snapshot. The images that it
// needs stay mounted below mnt/ until the snapshot is committed or removed.
func (s *Store) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	mounts, err := s.mounts(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, errs.Full(err))
	}
	return mounts, ctx.Err()
}

func (s *Store) mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	rec, st, err := s.ready(ctx, key)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.ContainsAny(s.dir, special):
		s.unuse(st.held)
		return nil, errs.New(errs.Unsupported, "the path %s cannot be said in options of mount(2)", s.dir)
	case st.uids != nil:
		s.unuse(st.held)
		return nil, errs.New(errs.Unsupported, "its owners are shifted, which mount(2) cannot say")
	case st.lacks:
		s.unuse(st.held)
		return nil, errs.New(errs.Unavailable, "bodies of its layers are missing: others can mount it when all are here")
	}
	options := s.mountOptions(st, s.dir+"/")
	if len(strings.Join(options, ",")) > pageRoom {
		s.unuse(st.held)
		if err := s.Settle(ctx, rec.Parent); err != nil {
			return nil, err
		}
		if _, st, err = s.take(key); err != nil {
			return nil, err
		}
		options = s.mountOptions(st, s.dir+"/")
	}
	s.keep(st, byKey(key), "")
	if err := s.showImages(key, st); err != nil {
		return nil, err
	}
	return []snapshot.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

// showImages mounts the images of a stack for others, and keeps in the record
// that they are.
func (s *Store) showImages(key snapshot.Key, st stack) error {
	var shown []string
	for _, l := range st.lowers {
		if l.image != "" {
			shown = append(shown, l.image)
		}
	}
	s.mu.Lock()
	if rec := s.byKey[key]; rec != nil && !rec.claimed && !slices.Equal(rec.Shown, shown) {
		changed := *rec
		changed.Shown = shown
		s.put(&changed)
	}
	s.uses.add(byKey(key), use{shown: shown})
	s.mu.Unlock()
	for _, name := range shown {
		if err := s.shown.show(&s.images, name); err != nil {
			return fmt.Errorf("show image %.16s: %w", name, err)
		}
	}
	return nil
}

// hideImages takes down the shown images that nobody uses any more.
func (s *Store) hideImages() error {
	return s.shown.hide(func(short string) bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		for name := range s.uses.shown {
			if shortName(name) == short {
				return true
			}
		}
		return false
	})
}
