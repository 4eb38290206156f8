package container

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// unpacker puts the entries of a tar into a tree. Whatever names they have,
// they end up below the tree's root.
type unpacker struct {
	tree      tree
	into      string
	overwrite bool // a folder by a file, a file by a folder
	folders   []*tar.Header
}

// unpack reads an archive into the folder into.
func (t tree) unpack(ctx context.Context, into string, archive io.Reader, overwrite bool) error {
	u := unpacker{tree: t, into: into, overwrite: overwrite}
	in := tar.NewReader(contextReader{ctx, archive})
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return badArchive(ctx, err)
		}
		if err := u.entry(h, in); err != nil {
			return badArchive(ctx, err)
		}
	}
}

func badArchive(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Invalid, "read the archive: %w", err)
	}
	return err
}

// entry makes one file.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name := path.Clean("/" + h.Name)
	if name == "/" {
		return nil // the folder itself, which is there
	}
	dir, base := path.Split(path.Join(u.into, name))
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := u.makeRoom(parent, base, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		u.folders = append(u.folders, h)
		if err := unix.Mkdirat(int(parent.Fd()), base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return pathError(name, err)
		}
	case tar.TypeReg:
		return u.file(parent, base, h, content)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, int(parent.Fd()), base)
	case tar.TypeLink:
		return u.link(parent, base, h)
	case tar.TypeFifo:
		err = unix.Mknodat(int(parent.Fd()), base, unix.S_IFIFO|uint32(h.Mode&0o777), 0)
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		err = unix.Mknodat(int(parent.Fd()), base, kind|uint32(h.Mode&0o777), int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return errs.New(errs.Invalid, "entry %q of the archive is of type %q", h.Name, h.Typeflag)
	}
	if err != nil {
		return pathError(name, err)
	}
	return u.settle(parent, base, h)
}

// parent opens the folder that an entry goes into, and makes it if need be.
func (u *unpacker) parent(dir string) (*os.File, error) {
	f, err := u.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, errs.NotFound) {
		return f, err
	}
	above, base := path.Split(strings.TrimSuffix(dir, "/"))
	parent, err := u.parent(above)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, pathError(dir, err)
	}
	return u.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
}

// makeRoom removes what is in the way of an entry.
func (u *unpacker) makeRoom(parent *os.File, base string, folder bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return pathError(base, err)
	}
	isFolder := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case isFolder && folder:
		return nil
	case isFolder != folder && !u.overwrite:
		return errs.New(errs.Conflict, "%s is there, and only one of the two is a folder", base)
	case isFolder:
		return removeTree(parent, base)
	}
	return pathOrNil(base, unix.Unlinkat(int(parent.Fd()), base, 0))
}

// removeTree removes a folder and what is below it.
func removeTree(parent *os.File, base string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(base)
}

func (u *unpacker) file(parent *os.File, base string, h *tar.Header, content io.Reader) error {
	f, err := openIn(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Close()); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return errs.New(errs.Exhausted, "%s: %w", h.Name, err)
		}
		return err
	}
	return u.settle(parent, base, h)
}

// link makes a hard link to an entry unpacked before.
func (u *unpacker) link(parent *os.File, base string, h *tar.Header) error {
	target, _, err := u.tree.lstat(path.Join(u.into, path.Clean("/"+h.Linkname)))
	if err != nil {
		return err
	}
	defer target.Close()
	return pathOrNil(h.Name, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", target.Fd()), int(parent.Fd()), base, unix.AT_SYMLINK_FOLLOW))
}

// finish gives the folders their times, which filling them has changed.
func (u *unpacker) finish() error {
	for _, h := range u.folders {
		dir, base := path.Split(path.Join(u.into, path.Clean("/"+h.Name)))
		parent, err := u.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, errs.NotFound) {
			continue // replaced by a later entry
		}
		if err != nil {
			return err
		}
		err = setTime(parent, base, h)
		parent.Close()
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// settle gives an entry its owner, mode, attributes and time.
func (u *unpacker) settle(parent *os.File, base string, h *tar.Header) error {
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError(h.Name, err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	uid, gid, err := u.tree.host(h.Uid, h.Gid)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return pathError(h.Name, err)
	}
	if h.Typeflag != tar.TypeSymlink {
		self := fmt.Sprintf("/proc/self/fd/%d", fd)
		if err := unix.Chmod(self, uint32(h.Mode&0o7777)); err != nil {
			return pathError(h.Name, err)
		}
		for key, value := range h.PAXRecords {
			if key, ok := strings.CutPrefix(key, xattrPrefix); ok && (key == "security.capability" || strings.HasPrefix(key, "user.")) {
				if err := unix.Setxattr(self, key, []byte(value), 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
					return pathError(h.Name, err)
				}
			}
		}
	}
	return setTime(parent, base, h)
}

func setTime(parent *os.File, base string, h *tar.Header) error {
	if h.ModTime.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	return unix.UtimesNanoAt(int(parent.Fd()), base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func pathOrNil(name string, err error) error {
	if err == nil {
		return nil
	}
	return pathError(name, err)
}
