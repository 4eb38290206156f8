package container

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// xattrPrefix begins extended attributes in a tar, as GNU tar writes them.
const xattrPrefix = "SCHILY.xattr."

// archiver writes a tree as a tar. Folders are opened one below the other, so
// that a container that moves things about leads it nowhere else.
type archiver struct {
	ctx context.Context //nolint:containedctx // it lives for one call
	out *tar.Writer
	owners
	links map[[2]uint64]string // device and inode to the name written first
}

// archive writes the path inside, under the name as, and what is below it.
func (t tree) archive(ctx context.Context, inside, as string, w io.Writer) error {
	a := archiver{ctx: ctx, out: tar.NewWriter(w), owners: t.owners, links: map[[2]uint64]string{}}
	f, st, err := t.lstat(inside)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.add(f, st, as); err != nil {
		return err
	}
	return a.out.Close()
}

// add writes one file, opened with O_PATH, and what is below it.
func (a *archiver) add(f *os.File, st unix.Stat_t, name string) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	header, err := a.header(f, st, name)
	if err != nil || header == nil {
		return err
	}
	if err := a.out.WriteHeader(header); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	switch {
	case header.Typeflag == tar.TypeReg && header.Size > 0:
		return a.content(f, header.Size)
	case header.Typeflag == tar.TypeDir:
		return a.children(f, name)
	}
	return nil
}

// header describes a file; nil for one that no archive can hold.
func (a *archiver) header(f *os.File, st unix.Stat_t, name string) (*tar.Header, error) {
	uid, gid := a.inside(int(st.Uid), int(st.Gid))
	h := &tar.Header{
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     uid,
		Gid:     gid,
		ModTime: time.Unix(st.Mtim.Unix()),
		Format:  tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		key := [2]uint64{st.Dev, st.Ino}
		if first, again := a.links[key]; again {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return h, nil
		}
		if st.Nlink > 1 {
			a.links[key] = name
		}
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		target, err := readlinkAt(f)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default: // a socket
		return nil, nil
	}
	h.PAXRecords = xattrs(f)
	return h, nil
}

// content copies a file; where it shrinks meanwhile, zeros fill what the
// header has promised.
func (a *archiver) content(f *os.File, size int64) error {
	file, err := reopen(f, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer file.Close()
	n, err := io.Copy(a.out, io.LimitReader(contextReader{a.ctx, file}, size))
	if err == nil && n < size {
		_, err = io.CopyN(a.out, zeros{}, size-n)
	}
	return err
}

func (a *archiver) children(f *os.File, name string) error {
	dir, err := reopen(f, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, child := range names {
		if err := a.child(dir, child, path.Join(name, child)); err != nil {
			return err
		}
	}
	return nil
}

func (a *archiver) child(dir *os.File, base, name string) error {
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return pathError(name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError(name, err)
	}
	return a.add(f, st, name)
}

// reopen opens for reading what f, opened with O_PATH, holds.
func reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError(f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// xattrs reads those that mean something elsewhere.
func xattrs(f *os.File) map[string]string {
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(self, buf)
	if err != nil || n == 0 {
		return nil
	}
	found := map[string]string{}
	value := make([]byte, 64<<10)
	for key := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if key != "security.capability" && !strings.HasPrefix(key, "user.") {
			continue
		}
		if n, err := unix.Getxattr(self, key, value); err == nil {
			found[xattrPrefix+key] = string(value[:n])
		}
	}
	return found
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// contextReader stops reading when ctx is done.
type contextReader struct {
	ctx context.Context //nolint:containedctx // it lives for one copy
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
