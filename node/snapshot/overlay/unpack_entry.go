package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
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
		return unix.Unlinkat(dir.fd, base, 0)
	}
	u.drop(name)
	d := deletion{top: u.root}
	err := d.remove(context.WithoutCancel(u.ctx), dir.fd, base, 0)
	for err == nil && len(d.deep) > 0 {
		aside := d.deep[0]
		d.deep = d.deep[1:]
		err = d.remove(context.WithoutCancel(u.ctx), u.root, aside, 0)
	}
	return err
}

// drop forgets the folder name and those in it.
func (u *unpacker) drop(name string) {
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
		f.opaque = true
		return nil
	}
	err := unix.Mknodat(dir.fd, hidden, unix.S_IFCHR, 0)
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	u.inodes++
	return nil
}

func (u *unpacker) file(dir *folder, base string, h *tar.Header, body io.Reader) error {
	mode := uint32(h.Mode) & 0o7777
	fd := -1
	err := u.make(dir, base, func() (err error) {
		fd, err = unix.Openat(dir.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer unix.Close(fd)
	if err := u.fill(fd, h, body); err != nil {
		return err
	}
	owned := h.Uid|h.Gid != 0
	if owned {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if mode&u.umask != 0 || owned && mode&0o6000 != 0 { // a change of owner takes setuid away
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := u.setXattrs(dir.fd, base, h); err != nil {
		return err
	}
	return u.setTimes(dir.fd, base, h)
}

var zeros [chunk]byte

// fill writes the body, leaving holes where a whole chunk is zeros.
func (u *unpacker) fill(fd int, h *tar.Header, body io.Reader) error {
	if u.size += h.Size; u.size > u.limit {
		return errs.New(errs.Invalid, "the layer unpacks to more bytes than is allowed")
	}
	for offset := int64(0); offset < h.Size; {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n := int(min(int64(len(u.buf)), h.Size-offset))
		if _, err := io.ReadFull(body, u.buf[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return &bodyError{err}
		}
		if h.Size < chunk {
			u.disk += (h.Size + 4095) &^ 4095
			return writeAll(fd, u.buf[:n], 0)
		}
		if err := u.writeSparse(fd, u.buf[:n], offset); err != nil {
			return err
		}
		offset += int64(n)
		if offset == h.Size && bytes.Equal(lastChunk(u.buf[:n]), zeros[:len(lastChunk(u.buf[:n]))]) {
			return unix.Ftruncate(fd, h.Size) // it ends in a hole
		}
	}
	return nil
}

func lastChunk(p []byte) []byte { return p[(len(p)-1)/chunk*chunk:] }

// writeSparse writes the chunks of p that are not zeros, neighbours at once.
func (u *unpacker) writeSparse(fd int, p []byte, offset int64) error {
	start := 0
	for at := 0; at < len(p); at += chunk {
		end := min(at+chunk, len(p))
		if !bytes.Equal(p[at:end], zeros[:end-at]) {
			continue
		}
		if err := u.writeRun(fd, p[start:at], offset+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return u.writeRun(fd, p[start:], offset+int64(start))
}

func (u *unpacker) writeRun(fd int, p []byte, offset int64) error {
	u.disk += (int64(len(p)) + 4095) &^ 4095
	return writeAll(fd, p, offset)
}

func writeAll(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, offset)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p, offset = p[n:], offset+int64(n)
	}
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
	case isAny(err, unix.ENOENT, unix.EBADF): // EBADF: it was in a folder just replaced
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

const paxXattr = "SCHILY.xattr."

func (u *unpacker) setXattrs(dirfd int, base string, h *tar.Header) error {
	for record, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(record, paxXattr); ok {
			if err := u.setXattr(dirfd, base, diskXattr(name), value); err != nil {
				return err
			}
		}
	}
	return nil
}

// setXattr sets one xattr. What this file system cannot keep is left out, as
// every unpacker does: images carry labels of other systems' security.
func (u *unpacker) setXattr(dirfd int, base, name, value string) error {
	err := unix.Lsetxattr("/proc/self/fd/"+strconv.Itoa(dirfd)+"/"+base, name, []byte(value), 0)
	switch {
	case err == nil || isAny(err, unix.ENOTSUP):
		return nil
	case isAny(err, unix.EPERM) && !strings.HasPrefix(name, "security."):
		return nil // user xattrs of links and devices, which Linux does not keep
	case isAny(err, unix.EINVAL, unix.ERANGE, unix.E2BIG):
		return errs.New(errs.Invalid, "xattr %s: %w", brief(name), err)
	}
	return fmt.Errorf("set xattr %s: %w", brief(name), err)
}

func (u *unpacker) setTimes(dirfd int, base string, h *tar.Header) error {
	accessed := h.AccessTime
	if accessed.IsZero() {
		accessed = h.ModTime
	}
	times := [2]unix.Timespec{
		{Sec: accessed.Unix(), Nsec: int64(accessed.Nanosecond())},
		{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())},
	}
	if err := unix.UtimesNanoAt(dirfd, base, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
