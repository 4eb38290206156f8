package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/node/snapshot"
	"berth/spec"
)

// Changes compares the snapshot's own folder with what shows below it.
func (s *Store) Changes(ctx context.Context, key snapshot.Key) ([]spec.Change, error) {
	rec, err := s.find(key)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	chain, err := s.chainLocked(rec.Parent)
	s.mu.RUnlock()
	if err != nil {
		return nil, fmt.Errorf("changes of snapshot %s: %w", key, err)
	}
	c := comparison{below: map[string][]string{".": nil}, cut: map[string]bool{".": rec.Opaque}}
	for _, layer := range chain {
		c.below["."] = append(c.below["."], s.fs(layer.ID))
	}
	if rec.Opaque {
		if err := s.hideRoot(rec, &c); err != nil {
			return nil, fmt.Errorf("changes of snapshot %s: %w", key, err)
		}
	}
	if err := s.walkLayer(ctx, rec, c.entry); err != nil {
		return nil, fmt.Errorf("changes of snapshot %s: %w", key, err)
	}
	slices.SortFunc(c.found, func(a, b spec.Change) int { return strings.Compare(a.Path, b.Path) })
	return c.found, nil
}

func (s *Store) hideRoot(rec *record, c *comparison) error {
	own, err := os.ReadDir(s.fs(rec.ID))
	if err != nil {
		return err
	}
	var names []string
	for _, e := range own {
		names = append(names, e.Name())
	}
	return c.hideBelow(".", "", names)
}

type comparison struct {
	// below lists, for each folder met, the folders of lower layers that show
	// through it, topmost first.
	below map[string][]string
	// cut holds the opaque folders met, and those in them.
	cut   map[string]bool
	found []spec.Change
}

func (c *comparison) add(kind, path string) {
	c.found = append(c.found, spec.Change{Kind: kind, Path: "/" + path})
}

func (c *comparison) entry(e *entry) error {
	dir := strings.TrimSuffix(strings.TrimSuffix(e.path, e.name), "/")
	if dir == "" {
		dir = "."
	}
	exists, folders, err := showing(c.below[dir], e.name)
	if err != nil {
		return err
	}
	switch {
	case isWhiteout(&e.st):
		if exists {
			c.add("D", e.path)
		}
		return nil
	case exists:
		c.add("C", e.path)
	default:
		c.add("A", e.path)
	}
	if !e.isDir() {
		return nil
	}
	c.below[e.path] = folders
	if c.cut[dir] || isOpaque(e.procPath()) {
		c.cut[e.path] = true
		return descend(e, func(fd int) error { return c.hide(e.path, fd) })
	}
	return nil
}

// hide reports what an opaque folder hides and has no successor for.
func (c *comparison) hide(dir string, fd int) error {
	own, err := namesIn(fd)
	if err != nil {
		return err
	}
	return c.hideBelow(dir, dir+"/", own)
}

func (c *comparison) hideBelow(dir, prefix string, own []string) error {
	names, err := merged(c.below[dir])
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains(own, name) {
			c.add("D", prefix+name)
		}
	}
	return nil
}

// showing says whether name shows in the merged folders, and if it is a
// folder, which folders make it up.
func showing(dirs []string, name string) (exists bool, folders []string, err error) {
	for _, dir := range dirs {
		path := dir + "/" + name
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		if isAny(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false, nil, fmt.Errorf("stat %s: %w", path, err)
		}
		if isWhiteout(&st) {
			return exists, folders, nil
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if exists && !isDir {
			return exists, folders, nil
		}
		exists = true
		if !isDir {
			return true, nil, nil
		}
		folders = append(folders, path)
		if isOpaque(path) {
			break
		}
	}
	return exists, folders, nil
}

// merged lists the names that show in the merged folders.
func merged(dirs []string) ([]string, error) {
	var names []string
	met := map[string]bool{}
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open folder %s: %w", dir, err)
		}
		in, err := namesIn(fd)
		for _, name := range in {
			if met[name] {
				continue
			}
			met[name] = true
			var st unix.Stat_t
			if e := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); e != nil {
				err = errors.Join(err, e)
			} else if !isWhiteout(&st) {
				names = append(names, name)
			}
		}
		_ = unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("read folder %s: %w", dir, err)
		}
	}
	slices.Sort(names)
	return names, nil
}
