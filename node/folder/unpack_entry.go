package folder

import (
	"archive/tar"
	"context"
	"fmt"
	"maps"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// make makes something new called base. What an earlier entry put there is
// replaced, as the later entry of a tar always wins.
func (u *unpacker) make(dir *folder, base string, create func() error) error {
	err := create()
	if err == unix.EEXIST { //nolint:errorlint // a bare errno
		if err := u.clear(dir, base); err != nil {
			return err
		}
		err = create()
	}
	if err == nil {
		u.inodes++
	}
	return err
}

// clear deletes what is called base, with all that is in it.
func (u *unpacker) clear(dir *folder, base string) error {
	name := join(dir.path, base)
	if u.dirs[name] == nil {
		u.inodes--
		delete(u.fresh, name)
		return unix.Unlinkat(dir.fd, base, 0)
	}
	u.drop(name)
	return Remove(context.WithoutCancel(u.ctx), dir.fd, base)
}

// drop forgets the folder name and what is in it.
func (u *unpacker) drop(name string) {
	maps.DeleteFunc(u.fresh, func(p string, _ Variant) bool { return strings.HasPrefix(p, name+"/") })
	for p, f := range u.dirs {
		if p != name && !strings.HasPrefix(p, name+"/") {
			continue
		}
		delete(u.dirs, p)
		u.inodes--
		if f.fd >= 0 {
			_ = unix.Close(f.fd)
			f.fd = -1
		}
	}
	open := u.open[:0]
	for _, f := range u.open {
		if f.fd >= 0 {
			open = append(open, f)
		}
	}
	u.open = open
}

func (u *unpacker) directory(dir *folder, base string, h *tar.Header) error {
	name := join(dir.path, base)
	if f := u.dirs[name]; f != nil {
		f.header = h
		return nil
	}
	f := &folder{path: name, fd: -1, header: h}
	err := unix.Mkdirat(dir.fd, base, 0o755)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(dir.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		f.opaque = isWhiteout(&st) // deleted and made anew: nothing below shows
		if err := u.clear(dir, base); err != nil {
			return err
		}
		err = unix.Mkdirat(dir.fd, base, 0o755)
	}
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	u.inodes++
	u.dirs[name] = f
	return nil
}

// whiteout hides what is below. An entry of the same layer is not below: it
// stays, whichever came first.
func (u *unpacker) whiteout(dir *folder, base string) error {
	if base == opaqueMarker {
		dir.opaque = true
		return nil
	}
	if strings.HasPrefix(base, aufsPrefix) {
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return errs.New(errs.Invalid, "whiteout of nothing")
	}
	if f := u.dirs[join(dir.path, hidden)]; f != nil {
		f.opaque, f.anew = true, true
		return nil
	}
	err := unix.Mknodat(dir.fd, hidden, unix.S_IFCHR, 0)
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	u.whited[dir.path] = true
	u.inodes++
	return nil
}

func (u *unpacker) hardLink(dir *folder, base string, h *tar.Header) error {
	target, err := inside(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", brief(h.Linkname), err)
	}
	missing := errs.New(errs.Invalid, "hard link to %s, which is no file of this layer", brief(h.Linkname))
	if u.dirs[target] != nil {
		return missing
	}
	if target == join(dir.path, base) {
		return nil
	}
	from := u.dirs[path.Dir(target)]
	if from == nil {
		return missing
	}
	if err := u.ensureOpen(from); err != nil {
		return err
	}
	if err := u.ensureOpen(dir); err != nil { // opening the one may have closed the other
		return err
	}
	err = u.make(dir, base, func() error {
		return unix.Linkat(from.fd, path.Base(target), dir.fd, base, 0)
	})
	switch {
	case errs.IsAny(err, unix.ENOENT, unix.EBADF): // EBADF: it was in a folder just replaced
		return missing
	case err != nil:
		return fmt.Errorf("make hard link: %w", err)
	}
	u.inodes-- // another name for the same
	return nil
}

func (u *unpacker) symlink(dir *folder, base string, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
		return errs.New(errs.Invalid, "symbolic link to a path of %d bytes", len(h.Linkname))
	}
	err := u.make(dir, base, func() error { return unix.Symlinkat(h.Linkname, dir.fd, base) })
	if err != nil {
		return fmt.Errorf("make symbolic link: %w", err)
	}
	return u.dressNode(dir, base, h)
}

// node makes a device or a fifo. Device 0:0 is how overlayfs spells a
// whiteout, so in a layer it is one.
func (u *unpacker) node(dir *folder, base string, h *tar.Header) error {
	mode, dev := uint32(h.Mode)&0o7777, 0
	switch h.Typeflag {
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	default:
		mode |= unix.S_IFIFO
	}
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return errs.New(errs.Invalid, "device number %d:%d", h.Devmajor, h.Devminor)
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		if dev == 0 && h.Typeflag == tar.TypeChar {
			return u.whiteout(dir, whiteoutPrefix+base)
		}
	}
	err := u.make(dir, base, func() error { return unix.Mknodat(dir.fd, base, mode, dev) })
	if err != nil {
		return fmt.Errorf("make device: %w", err)
	}
	if mode&u.umask != 0 || mode&0o7000 != 0 {
		if err := unix.Fchmodat(dir.fd, base, mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return u.dressNode(dir, base, h)
}

func (u *unpacker) dressNode(dir *folder, base string, h *tar.Header) error {
	if h.Uid|h.Gid != 0 {
		if err := unix.Fchownat(dir.fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := u.setXattrs(dir.fd, base, h); err != nil {
		return err
	}
	return u.setTimes(dir.fd, base, h)
}
