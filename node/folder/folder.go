// Package folder is a layer as a folder on disk, in the form that overlayfs
// takes: deleted names are character devices 0:0, folders that hide what is
// below carry trusted.overlay.opaque=y, and xattrs of that kind which belong
// to the tree's owner lie under an escaped name.
//
// It unpacks a tar into such a folder, walks it, writes it as a tar again,
// compares it with the folders below, and deletes it. A container may be
// writing to a folder that is read: nothing here follows a symbolic link in
// it, or takes a name for what it was a moment ago.
package folder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// maxDepth bounds the walks: no path in a container is longer than 4096
// bytes, and each level holds a descriptor.
const maxDepth = 2048

// Entry is one name in a folder, found without following links.
type Entry struct {
	Dirfd int // of the folder it is in; open while Walk's function runs
	Name  string
	Path  string // from where the walk began
	Stat  unix.Stat_t

	whole bool // of a whole tree, in which nothing is overlayfs's
}

// IsDir says whether the entry is a folder.
func (e *Entry) IsDir() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsWhiteout says whether the entry deletes what is below.
func (e *Entry) IsWhiteout() bool { return !e.whole && isWhiteout(&e.Stat) }

// IsOpaque says whether the entry is a folder that hides what is below.
func (e *Entry) IsOpaque() bool { return !e.whole && e.IsDir() && isOpaque(e.procPath()) }

// Target is where a symbolic link points.
func (e *Entry) Target() (string, error) { return os.Readlink(e.procPath()) }

// Open opens a regular file for reading.
func (e *Entry) Open() (*os.File, error) {
	fd, err := unix.Openat(e.Dirfd, e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", e.Path, err)
	}
	return os.NewFile(uintptr(fd), e.Path), nil
}

// procPath reaches the entry from outside of its folder's descriptor, for
// calls that know no descriptor.
func (e *Entry) procPath() string { return procPath(e.Dirfd, e.Name) }

func procPath(dirfd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

// ErrSkip makes Walk leave out what is in a folder.
var ErrSkip = errors.New("skip this folder")

// Walk calls fn for all below the folder dirfd, in the order of names, a
// folder before what is in it. Names that vanish meanwhile are left out.
//
// Unsupported: folders are nested deeper than any path reaches.
func Walk(ctx context.Context, dirfd int, fn func(*Entry) error) error {
	return walk(ctx, dirfd, ".", 0, false, fn)
}

// WalkWhole is Walk for a whole tree rather than a layer: nothing in it is a
// whiteout, and its xattrs are what they are.
func WalkWhole(ctx context.Context, dirfd int, fn func(*Entry) error) error {
	return walk(ctx, dirfd, ".", 0, true, fn)
}

func walk(ctx context.Context, dirfd int, dir string, depth int, whole bool, fn func(*Entry) error) error {
	if depth > maxDepth {
		return errs.New(errs.Unsupported, "folders are nested more than %d deep", maxDepth)
	}
	names, err := Names(dirfd)
	if err != nil {
		return fmt.Errorf("read folder %s: %w", dir, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := lookAt(dirfd, dir, name, whole)
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		err = fn(e)
		if err == ErrSkip { //nolint:errorlint // returned bare
			continue
		}
		if err != nil {
			return err
		}
		if e.IsDir() {
			if err := e.Descend(func(fd int) error { return walk(ctx, fd, e.Path, depth+1, whole, fn) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookAt returns the entry name of a folder; nil if it is not there.
func lookAt(dirfd int, dir, name string, whole bool) (*Entry, error) {
	e := &Entry{Dirfd: dirfd, Name: name, Path: join(dir, name), whole: whole}
	err := unix.Fstatat(dirfd, name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW)
	if errs.IsAny(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", e.Path, err)
	}
	return e, nil
}

// Descend calls fn with a descriptor of the folder e, unless it has gone or
// become something else meanwhile.
func (e *Entry) Descend(fn func(fd int) error) error {
	fd, err := unix.Openat(e.Dirfd, e.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errs.IsAny(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open folder %s: %w", e.Path, err)
	}
	defer unix.Close(fd)
	return fn(fd)
}

// Names lists the folder in order, from its beginning, and leaves dirfd open.
// An O_PATH descriptor will do.
func Names(dirfd int) ([]string, error) {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// Usage is what a folder takes on disk.
type Usage struct {
	Size   int64 // bytes
	Inodes int64
}

// Count adds up the folder dirfd, itself included.
func Count(ctx context.Context, dirfd int) (Usage, error) {
	usage := Usage{Inodes: 1, Size: 4096}
	seen := map[uint64]bool{}
	err := Walk(ctx, dirfd, func(e *Entry) error {
		if e.Stat.Nlink > 1 && !e.IsDir() {
			if seen[e.Stat.Ino] {
				return nil
			}
			seen[e.Stat.Ino] = true
		}
		usage.Inodes++
		usage.Size += e.Stat.Blocks * 512
		return nil
	})
	return usage, err
}

func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
