package folder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// Changes compares the layer in the folder dirfd with what the folders below
// show, topmost first. opaque says that the layer's root hides all of them. A
// folder in which something changed has changed itself.
func Changes(ctx context.Context, dirfd int, opaque bool, below []string) ([]spec.Change, error) {
	c := comparison{below: map[string][]string{".": below}, cut: map[string]bool{".": opaque}}
	if opaque {
		if err := c.hide(".", dirfd); err != nil {
			return nil, err
		}
	}
	if err := Walk(ctx, dirfd, c.entry); err != nil {
		return nil, err
	}
	slices.SortFunc(c.found, func(a, b spec.Change) int { return strings.Compare(a.Path, b.Path) })
	return c.found, nil
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

func (c *comparison) entry(e *Entry) error {
	dir := strings.TrimSuffix(strings.TrimSuffix(e.Path, e.Name), "/")
	if dir == "" {
		dir = "."
	}
	exists, folders, err := showing(c.below[dir], e.Name)
	if err != nil {
		return err
	}
	switch {
	case isWhiteout(&e.Stat):
		if exists {
			c.add("D", e.Path)
		}
		return nil
	case exists:
		c.add("C", e.Path)
	default:
		c.add("A", e.Path)
	}
	if !e.IsDir() {
		return nil
	}
	c.below[e.Path] = folders
	if c.cut[dir] || isOpaque(e.procPath()) {
		c.cut[e.Path] = true
		return e.Descend(func(fd int) error { return c.hide(e.Path, fd) })
	}
	return nil
}

// hide reports what an opaque folder hides and has no successor for.
func (c *comparison) hide(dir string, fd int) error {
	own, err := Names(fd)
	if err != nil {
		return err
	}
	names, err := merged(c.below[dir])
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, kept := slices.BinarySearch(own, name); !kept {
			c.add("D", join(dir, name))
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
		if errs.IsAny(err, unix.ENOENT) {
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
		in, err := Names(fd)
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
