package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"berth/base/errs"

	"golang.org/x/sys/unix"
)

// Method is how a file comes into another tree.
type Method int

// The methods.
const (
	Link    Method = iota // a further name of the same inode: for trees that never change
	Reflink               // an inode of its own, on the same blocks
	Copy
)

// Cloned is what tells later whether a clone's files have been written to.
type Cloned struct {
	From, To int64             // the clone's ctimes, in nanoseconds; To was over
	Folders  map[string]uint64 // inodes by path, for a folder may be moved with all that is in it
}

// Clone fills the new folder to with the whole tree in from. The looks of the
// root come along. Hard links stay hard links.
func Clone(ctx context.Context, from, to int, how Method) (Cloned, error) {
	c := newCloner(ctx, to, how)
	defer c.close()
	var begun, ended unix.Stat_t
	if err := unix.Fstat(to, &begun); err != nil {
		return Cloned{}, fmt.Errorf("clone a tree: %w", err)
	}
	c.folders = map[string]uint64{".": begun.Ino}
	err := WalkWhole(ctx, from, func(e *Entry) error {
		if e.IsDir() {
			return c.makeFolder(e)
		}
		return c.put(e)
	})
	if err == nil {
		err = c.addLooks(&Entry{Dirfd: from, Name: ".", Path: ".", whole: true})
	}
	if err == nil {
		err = c.finish()
	}
	if err == nil {
		err = unix.Fchmodat(to, ".", c.looks[len(c.looks)-1].stat.Mode&0o7777, 0) // a ctime after all others
	}
	if err == nil {
		err = unix.Fstat(to, &ended)
	}
	if err != nil {
		return Cloned{}, fmt.Errorf("clone a tree: %w", err)
	}
	return Cloned{From: begun.Ctim.Nano(), To: ended.Ctim.Nano(), Folders: c.folders}, nil
}

// Apply lays the layer in the folder layer on the whole tree in to. opaque
// says that the layer's root hides all that is there.
func Apply(ctx context.Context, layer, to int, opaque bool, how Method) error {
	c := newCloner(ctx, to, how)
	defer c.close()
	if opaque {
		if err := c.empty(to); err != nil {
			return fmt.Errorf("lay a layer on a tree: %w", err)
		}
	}
	err := Walk(ctx, layer, c.apply)
	if err == nil {
		err = c.addLooks(&Entry{Dirfd: layer, Name: ".", Path: "."})
	}
	if err != nil {
		return fmt.Errorf("lay a layer on a tree: %w", err)
	}
	return c.finish()
}

// cloner puts files into the folder to. Nobody else writes there.
type cloner struct {
	ctx   context.Context //nolint:containedctx // lives as long as Clone or Apply
	how   Method
	first map[uint64]string // inode to the path of its clone
	looks []looks           // of folders: set when nothing is put into them any more
	buf   []byte
	// folders are the inodes of those made, where somebody asks.
	folders map[string]uint64
	cursor
}

// cursor is a tree of which one folder is open.
type cursor struct {
	to    int
	dir   string
	dirfd int
}

func newCursor(to int) cursor { return cursor{to: to, dir: ".", dirfd: to} }

type looks struct {
	path   string
	stat   unix.Stat_t
	xattrs []Xattr
}

func newCloner(ctx context.Context, to int, how Method) *cloner {
	return &cloner{ctx: ctx, how: how, first: map[uint64]string{}, cursor: newCursor(to)}
}

func (c *cursor) close() {
	if c.dirfd != c.to {
		_ = unix.Close(c.dirfd)
	}
	c.dir, c.dirfd = ".", c.to
}

// within opens the folder that the entry at name is to be in.
func (c *cursor) within(name string) (int, error) {
	dir := path.Dir(name)
	if dir == c.dir {
		return c.dirfd, nil
	}
	c.close()
	if dir == "." {
		return c.to, nil
	}
	fd, err := openBeneath(c.to, dir)
	if err != nil {
		return -1, fmt.Errorf("open folder %s: %w", brief(dir), err)
	}
	c.dir, c.dirfd = dir, fd
	return fd, nil
}

// apply puts an entry of a layer in the place of what is there.
func (c *cloner) apply(e *Entry) error {
	dirfd, err := c.within(e.Path)
	if err != nil {
		return err
	}
	there, err := lookAt(dirfd, ".", e.Name, true)
	if err != nil {
		return err
	}
	if e.IsDir() && there != nil && there.IsDir() {
		if e.IsOpaque() {
			if err := there.Descend(c.empty); err != nil {
				return err
			}
		}
		return c.addLooks(e)
	}
	if there != nil {
		if err := Remove(c.ctx, dirfd, e.Name); err != nil {
			return err
		}
	}
	switch {
	case e.IsWhiteout():
		return nil
	case e.IsDir():
		return c.makeFolder(e)
	}
	return c.put(e)
}

func (c *cloner) empty(dirfd int) error {
	names, err := Names(dirfd)
	for _, name := range names {
		if err == nil {
			err = Remove(c.ctx, dirfd, name)
		}
	}
	return err
}

func (c *cloner) makeFolder(e *Entry) error {
	dirfd, err := c.within(e.Path)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(dirfd, e.Name, 0o700); err != nil {
		return fmt.Errorf("make folder %s: %w", brief(e.Path), err)
	}
	if c.folders != nil {
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		c.folders[e.Path] = st.Ino
	}
	return c.addLooks(e)
}

// addLooks remembers what a folder is to look like.
func (c *cloner) addLooks(e *Entry) error {
	if err := unix.Fstatat(e.Dirfd, e.Name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	xattrs, err := e.Xattrs()
	c.looks = append(c.looks, looks{e.Path, e.Stat, xattrs})
	return err
}

// finish sets the looks of folders, the deepest first.
func (c *cloner) finish() error {
	for _, l := range slices.Backward(c.looks) {
		dirfd, err := c.within(l.path)
		if l.path == "." {
			dirfd, err = c.to, nil
		}
		if err == nil {
			err = l.set(dirfd, path.Base(l.path))
		}
		if err != nil {
			return fmt.Errorf("folder %s: %w", brief(l.path), err)
		}
	}
	return nil
}

// put clones all but folders.
func (c *cloner) put(e *Entry) error {
	dirfd, err := c.within(e.Path)
	if err == nil {
		err = c.putIn(dirfd, e)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", brief(e.Path), err)
	}
	return nil
}

func (c *cloner) putIn(dirfd int, e *Entry) error {
	if c.how == Link && !e.isEscaped() {
		// EMLINK: it has as many names as it can; EXDEV: it is in another subvolume.
		if err := unix.Linkat(e.Dirfd, e.Name, dirfd, e.Name, 0); !errs.IsAny(err, unix.EMLINK, unix.EXDEV) {
			return err
		}
	}
	if e.Stat.Nlink > 1 {
		if first, ok := c.first[e.Stat.Ino]; ok {
			return unix.Linkat(c.to, first, dirfd, e.Name, 0)
		}
		c.first[e.Stat.Ino] = e.Path
	}
	var err error
	switch e.Stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = c.file(dirfd, e)
	case unix.S_IFLNK:
		var target string
		if target, err = e.Target(); err == nil {
			err = unix.Symlinkat(target, dirfd, e.Name)
		}
	default:
		err = unix.Mknodat(dirfd, e.Name, e.Stat.Mode&unix.S_IFMT|0o600, int(e.Stat.Rdev))
	}
	if err != nil {
		return err
	}
	xattrs, err := e.Xattrs()
	if err != nil {
		return err
	}
	l := looks{e.Path, e.Stat, xattrs}
	return l.set(dirfd, e.Name)
}

// isEscaped says whether an entry of a layer has xattrs that have another name
// in a whole tree.
func (e *Entry) isEscaped() bool {
	if e.whole {
		return false
	}
	names, err := listXattrs(e.procPath())
	return err != nil || slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, overlayXattr) })
}

func (c *cloner) file(dirfd int, e *Entry) error {
	from, err := e.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.Openat(dirfd, e.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), e.Path)
	if c.how == Copy || unix.IoctlFileClone(fd, int(from.Fd())) != nil {
		err = c.copyData(from, to, e.Stat.Size)
	}
	return errors.Join(err, to.Close())
}

// copyData copies what is not a hole.
func (c *cloner) copyData(from, to *os.File, size int64) error {
	if c.buf == nil {
		c.buf = make([]byte, 1<<18)
	}
	for at := int64(0); at < size; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errs.IsAny(err, unix.ENXIO) {
			break // the rest is a hole
		}
		if err != nil {
			data = at // this file system knows no holes
		}
		end, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			end = size
		}
		for at = data; at < min(end, size); {
			n, err := from.ReadAt(c.buf[:min(int64(len(c.buf)), end-at)], at)
			if n == 0 && err == io.EOF {
				at = size // somebody cut it short
				break
			}
			if n == 0 {
				return err
			}
			if _, err := to.WriteAt(c.buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
	}
	return to.Truncate(size)
}

// set gives what was just made its looks.
func (l *looks) set(dirfd int, name string) error {
	if err := unix.Fchownat(dirfd, name, int(l.stat.Uid), int(l.stat.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if l.stat.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dirfd, name, l.stat.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	for _, x := range l.xattrs {
		err := unix.Lsetxattr(procPath(dirfd, name), x.Name, x.Value, 0)
		if err != nil && !errs.IsAny(err, unix.ENOTSUP) {
			return fmt.Errorf("set xattr %s: %w", x.Name, err)
		}
	}
	times := []unix.Timespec{l.stat.Atim, l.stat.Mtim}
	if err := unix.UtimesNanoAt(dirfd, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
