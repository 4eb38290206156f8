package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Fill copies the content of the folder from, a path within root, with
// owners, modes, times, extended attributes and links, into the volume if
// that is empty; the volume's folder gets the owner and mode of from, or,
// where from is missing or no folder, the owner of root, who is not the
// machine's where the container has users of its own; the folder of a device
// stays as it is. No link in root leads out of it. The volume must have been acquired.
func (s *Set) Fill(ctx context.Context, name, root, from string) error {
	e, err := s.find(name)
	if err != nil {
		return err
	}
	e.work.Lock()
	defer e.work.Unlock()
	err = fill(ctx, filepath.Join(s.dir, name, "filling"), e.volume.Path, root, from)
	if errors.Is(err, errNothing) {
		err = nil
		if len(e.volume.Options) == 0 {
			err = own(e.volume.Path, root)
		}
	}
	if err != nil {
		return fmt.Errorf("fill volume %s: %w", name, err)
	}
	return nil
}

// errNothing: there is nothing to fill a volume with.
var errNothing = errors.New("nothing to copy")

func fill(ctx context.Context, marker, data, root, from string) error {
	source, err := openIn(root, from)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return errNothing
	}
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(data, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer target.Close()

	if _, err := os.Lstat(marker); err == nil {
		// The last attempt was cut short, and so was the container it was for.
		if err := empty(target); err != nil {
			return err
		}
	} else if names, err := target.Readdirnames(1); len(names) > 0 {
		return nil
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return err
	}
	c := copier{ctx: ctx, root: target, links: map[inode]string{}, buf: make([]byte, 1<<20)}
	if err := c.folder(source, target, "."); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = errs.New(errs.Exhausted, "%w", err)
		}
		return errors.Join(err, empty(target), os.Remove(marker))
	}
	return os.Remove(marker)
}

// own gives an empty folder that is the machine's root's the owner of another.
func own(dir, as string) error {
	var from, to unix.Stat_t
	if err := errors.Join(unix.Stat(as, &from), unix.Stat(dir, &to)); err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) > 0 || to.Uid != 0 || to.Gid != 0 {
		return err
	}
	return os.Chown(dir, int(from.Uid), int(from.Gid))
}

// openIn opens a folder within root as if root were /.
func openIn(root, path string) (*os.File, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// empty removes what a folder holds.
func empty(dir *os.File) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(procPath(dir, ""))
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range names {
		err = errors.Join(err, root.RemoveAll(name))
	}
	_, seek := dir.Seek(0, io.SeekStart)
	return errors.Join(err, seek)
}

type inode struct{ dev, ino uint64 }

// A copier copies trees. Both sides are walked by open folders and single
// names, never by paths, so that nobody who changes them meanwhile leads it
// astray.
type copier struct {
	ctx   context.Context //nolint:containedctx // lives for one copy
	root  *os.File
	links map[inode]string // where the first name of a file went, under root
	buf   []byte
}

// folder copies what is in one folder, then what the folder itself is like.
func (c *copier) folder(from, to *os.File, path string) error {
	entries, err := from.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.one(from, to, entry.Name(), filepath.Join(path, entry.Name())); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(path, entry.Name()), err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	return attributes(procPath(from, "."), procPath(to, "."), &st)
}

func (c *copier) one(from, to *os.File, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		first, known := c.links[inode{st.Dev, st.Ino}]
		if known {
			return c.link(first, to, name)
		}
		c.links[inode{st.Dev, st.Ino}] = path
	}
	switch kind {
	case unix.S_IFDIR:
		return c.subfolder(from, to, name, path)
	case unix.S_IFREG:
		if err := c.file(from, to, name, st.Size); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target := make([]byte, st.Size+1)
		n, err := unix.Readlinkat(int(from.Fd()), name, target)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(target[:n]), int(to.Fd()), name); err != nil {
			return err
		}
	default: // device, pipe, socket
		if err := unix.Mknodat(int(to.Fd()), name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	return attributes(procPath(from, name), procPath(to, name), &st)
}

func (c *copier) subfolder(from, to *os.File, name, path string) error {
	source, err := openAt(from, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
		return err
	}
	target, err := openAt(to, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer target.Close()
	return c.folder(source, target, path)
}

// file copies content: by reference where the file system can, else what is
// not a hole.
func (c *copier) file(from, to *os.File, name string, size int64) error {
	source, err := openAt(from, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := openAt(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer target.Close()
	if size > 0 && unix.IoctlFileClone(int(target.Fd()), int(source.Fd())) == nil {
		return nil
	}
	if err := target.Truncate(size); err != nil {
		return err
	}
	for offset := int64(0); offset < size; {
		start, err := unix.Seek(int(source.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(source.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		section := io.NewSectionReader(source, start, min(end, size)-start)
		if _, err := io.CopyBuffer(io.NewOffsetWriter(target, start), struct{ io.Reader }{section}, c.buf); err != nil {
			return err
		}
		offset = end
	}
	return target.Close()
}

// link gives a file that was copied before a further name.
func (c *copier) link(first string, to *os.File, name string) error {
	fd, err := unix.Openat2(int(c.root.Fd()), first, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, "", int(to.Fd()), name, unix.AT_EMPTY_PATH)
}

// attributes gives target what source has: owner, mode, extended attributes
// and times, in the order in which none undoes another. Neither is followed.
func attributes(source, target string, st *unix.Stat_t) error {
	if err := unix.Lchown(target, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(unix.AT_FDCWD, target, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err := xattrs(source, target); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, target, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func xattrs(source, target string) error {
	size, err := unix.Llistxattr(source, nil)
	if errors.Is(err, unix.ENOTSUP) || size == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(source, list); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || name == "security.selinux" {
			continue // of the layers, and of the place
		}
		n, err := unix.Lgetxattr(source, name, nil)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		value := make([]byte, n)
		if n, err = unix.Lgetxattr(source, name, value); err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		err = unix.Lsetxattr(target, name, value[:n], 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

func openAt(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// procPath names an entry of an open folder, for calls that know no *at form.
func procPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}
