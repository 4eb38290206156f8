package object

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// Adopt stores the body of a file that is on the same file system without
// writing it again: by sharing its bytes where the file system can, else by
// another name for the file. Such an object has owner, mode and xattrs of the
// file until Own. The file must be written no more: if it changes while it is
// read, that is errs.Conflict; afterwards it would damage the object.
//
// The file may be all there is of the body but for the object that is here
// already. So that is read, too, and replaced if it is damaged.
func (b *Batch) Adopt(ctx context.Context, f *os.File, size int64) (tree.Digest, error) {
	fd := int(f.Fd())
	var before, after unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return tree.Digest{}, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	d, n, err := b.store.digest(ctx.Err, fd)
	if err != nil {
		return tree.Digest{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if err := unix.Fstat(fd, &after); err != nil {
		return tree.Digest{}, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	changed := errs.New(errs.Conflict, "%s changes while it becomes an object", f.Name())
	if n != size || after.Ctim != before.Ctim || !same(&after, &before) {
		return tree.Digest{}, changed
	}
	if b.Pin(d) && b.store.isRotten(d, &before) {
		return d, b.store.Replace(d, io.NewSectionReader(f, 0, size))
	}
	err = b.add(d, func(dir int, name string) error {
		if err := b.store.link(f, dir, name); err != nil {
			return err
		}
		if err := unix.Fstat(fd, &after); err != nil || !same(&after, &before) {
			return &madeError{changed}
		}
		return nil
	})
	return d, err
}

// isRotten says whether the object that should be here is not, or has other
// bytes than its name says, and is not the file itself.
func (s *Store) isRotten(d tree.Digest, file *unix.Stat_t) bool {
	if st, err := s.Stat(d); err == nil && st.Ino == file.Ino && st.Dev == file.Dev {
		return false
	}
	err := s.check(s.shard(d).dir, d)
	return isDamage(err) || errs.IsAny(err, unix.ENOENT)
}

func same(a, b *unix.Stat_t) bool { return a.Size == b.Size && a.Mtim == b.Mtim }

// link makes name the body of f: a clone, a hard link, or else a copy.
func (s *Store) link(f *os.File, dir int, name string) error {
	if !s.noClone.Load() {
		err := s.copy(f, dir, name, func(to, from int) error { return unix.IoctlFileClone(to, from) })
		if !errs.IsAny(err, unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EXDEV, unix.ENOSYS) {
			return err
		}
		if !errs.IsAny(err, unix.EXDEV) {
			s.noClone.Store(true)
		}
	}
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), dir, name, unix.AT_SYMLINK_FOLLOW)
	if !errs.IsAny(err, unix.EXDEV, unix.EMLINK, unix.EPERM) {
		return err
	}
	return s.copy(f, dir, name, s.copyBytes)
}

// copy makes name by way of a temporary file, which fill gives the bytes.
func (s *Store) copy(f *os.File, dir int, name string, fill func(to, from int) error) error {
	fd, temporary, err := s.create()
	if err != nil {
		return err
	}
	err = fill(fd, int(f.Fd()))
	_ = unix.Close(fd)
	if err == nil {
		err = s.place(temporary, dir, name)
	}
	if err != nil {
		_ = unix.Unlinkat(s.fd, temporary, 0)
	}
	return err
}

func (s *Store) copyBytes(to, from int) error {
	block := s.blocks.Get().(*[]byte)
	defer s.blocks.Put(block)
	for offset := int64(0); ; {
		n, err := unix.Pread(from, *block, offset)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.Ftruncate(to, offset)
		}
		if _, err := writeSparse(to, (*block)[:n], offset); err != nil {
			return err
		}
		offset += int64(n)
	}
}

// Own makes an adopted object root's alone, once nobody sees the file that it
// was: 0600, no xattrs.
func (s *Store) Own(d tree.Digest) error {
	f, err := s.Open(d)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chown(0, 0); err != nil {
		return err
	}
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	return dropXattrs(int(f.Fd()))
}

func dropXattrs(fd int) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, buf)
	if errs.IsAny(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for len(buf[:n]) > 0 {
		name := unix.ByteSliceToString(buf[:n])
		if err := unix.Fremovexattr(fd, name); err != nil && !errs.IsAny(err, unix.ENODATA, unix.ENOTSUP) {
			return fmt.Errorf("remove xattr %s: %w", name, err)
		}
		buf, n = buf[len(name)+1:], n-len(name)-1
	}
	return nil
}
