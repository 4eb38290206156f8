package folder

import (
	"context"
	"os"
	"strconv"
	"strings"

	"berth/base/errs"

	"golang.org/x/sys/unix"
)

const (
	maxDescent  = 128
	asidePrefix = "aside-"
)

// IsAside says whether a name beside the folders was left there by a Remove
// that a crash ended. It is to be removed too.
func IsAside(name string) bool { return strings.HasPrefix(name, asidePrefix) }

// Remove deletes name in the folder top, with all that is in it, however deep.
// None is no error. What lies very deep is moved into top first, under a name
// that IsAside knows.
func Remove(ctx context.Context, top int, name string) error {
	d := deletion{top: top, id: name}
	for {
		if err := d.remove(ctx, top, name, 0); err != nil {
			return &os.PathError{Op: "delete", Path: name, Err: err}
		}
		if len(d.deep) == 0 {
			return nil
		}
		name, d.deep = d.deep[0], d.deep[1:]
	}
}

// deletion deletes a tree of any depth with few descriptors.
type deletion struct {
	top   int
	id    string
	moved int
	deep  []string
}

func (d *deletion) remove(ctx context.Context, dirfd int, name string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || errs.IsAny(err, unix.ENOENT) {
		return nil
	}
	if !errs.IsAny(err, unix.EISDIR, unix.EPERM) {
		return err
	}
	if depth == maxDescent {
		return d.putAside(dirfd, name)
	}
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, readErr := f.Readdirnames(1024)
		for _, n := range names {
			if err := d.remove(ctx, fd, n, depth+1); err != nil {
				return err
			}
		}
		if len(names) == 0 || readErr != nil {
			break // what is left makes rmdir fail
		}
	}
	return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}

func (d *deletion) putAside(dirfd int, name string) error {
	for {
		d.moved++
		aside := asidePrefix + d.id + "-" + strconv.Itoa(d.moved)
		err := unix.Renameat2(dirfd, name, d.top, aside, unix.RENAME_NOREPLACE)
		if errs.IsAny(err, unix.EEXIST) {
			continue // the tree has that name itself
		}
		if err == nil {
			d.deep = append(d.deep, aside)
		}
		return err
	}
}
