package object

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// check reads the body d again, out of the page cache where it is there.
func (s *Store) check(dir int, d tree.Digest) error {
	fd, err := unix.Openat(dir, name(d), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	got, _, err := s.digest(func() error { return nil }, fd)
	if err == nil && got != d {
		err = errs.New(errs.Invalid, "object %x is damaged: it is %x", d, got)
	}
	return err
}

// isDamage says whether check failed for the body's sake: something else, as
// too many open files, says nothing of it.
func isDamage(err error) bool {
	return errors.Is(err, errs.Invalid) || errs.IsAny(err, unix.EIO, unix.EBADMSG, unix.EUCLEAN)
}

// digest hashes a file from its beginning.
func (s *Store) digest(stop func() error, fd int) (d tree.Digest, size int64, err error) {
	block := s.blocks.Get().(*[]byte)
	defer s.blocks.Put(block)
	h := sha256.New()
	for {
		if err := stop(); err != nil {
			return d, size, err
		}
		n, err := unix.Pread(fd, *block, size)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return d, size, err
		}
		h.Write((*block)[:n])
		size += int64(n)
		if n < Block { // the end; direct reading could not go on from here
			h.Sum(d[:0])
			return d, size, nil
		}
	}
}

// Verify reads the body d again: from the disk, past the page cache, where the
// file system lets it, so that it finds what others would read tomorrow and
// takes no memory from them. The error is errs.Invalid where the body is
// damaged, errs.NotFound where it is not here.
func (s *Store) Verify(ctx context.Context, d tree.Digest) error {
	got, err := s.reread(ctx, d)
	switch {
	case errors.Is(err, unix.ENOENT):
		sh := s.shard(d)
		sh.mu.Lock()
		sh.known.remove(keyOf(d))
		sh.mu.Unlock()
		return errs.New(errs.NotFound, "object %x is not here", d)
	case errors.Is(err, unix.EIO):
		return errs.New(errs.Invalid, "object %x cannot be read: %w", d, err)
	case err != nil:
		return fmt.Errorf("read object %x: %w", d, err)
	case got != d:
		return errs.New(errs.Invalid, "object %x is damaged: its bytes are %x", d, got)
	}
	return nil
}

func (s *Store) reread(ctx context.Context, d tree.Digest) (got tree.Digest, err error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOATIME
	for _, more := range []int{unix.O_DIRECT, 0} {
		var fd int
		fd, err = unix.Openat(s.fd, Name(d), flags|more, 0)
		if err == nil {
			got, _, err = s.digest(ctx.Err, fd)
			_ = unix.Close(fd)
		}
		if !errors.Is(err, unix.EINVAL) { // no direct reading here
			break
		}
	}
	return got, err
}

// Replace stores the body d anew, whether it is damaged or not here. A body
// that is another is errs.Invalid.
func (s *Store) Replace(d tree.Digest, body io.Reader) error {
	fd, temporary, err := s.create()
	if err != nil {
		return err
	}
	defer func() {
		_ = unix.Close(fd)
		_ = unix.Unlinkat(s.fd, temporary, 0) // where it no longer is once it has its name
	}()
	block := s.blocks.Get().(*[]byte)
	defer s.blocks.Put(block)
	w := &Writer{fd: fd, hash: sha256.New()}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{body}, *block); err != nil {
		return err
	}
	var got tree.Digest
	if w.hash.Sum(got[:0]); got != d {
		return errs.New(errs.Invalid, "body for object %x is %x", d, got)
	}
	if err := s.replace(d, fd, temporary, w.size); err != nil {
		return fmt.Errorf("replace object %x: %w", d, errs.Full(err))
	}
	return nil
}

// replace gives a temporary file that holds the body d its name, durably.
func (s *Store) replace(d tree.Digest, fd int, temporary string, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	if err := unix.Fsync(fd); err != nil {
		return err
	}
	sh, k := s.shard(d), keyOf(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if err := sh.make(s); err != nil {
		return err
	}
	sh.claim(k)
	defer sh.release(k)
	sh.mu.Unlock()
	err := unix.Renameat(s.fd, temporary, sh.dir, name(d))
	sh.mu.Lock()
	if err == nil {
		sh.known.add(k)
	}
	return err
}
