package folder

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

func (u *unpacker) file(dir *folder, base string, h *tar.Header, body io.Reader) error {
	if u.size += h.Size; u.size > u.limit {
		return errs.New(errs.Invalid, "the layer unpacks to more bytes than is allowed")
	}
	s := u.share(join(dir.path, base), h)
	defer s.close()
	if h.Size > int64(len(u.buf)) {
		return u.bigFile(&s, dir, base, h, body)
	}
	p := u.buf[:h.Size]
	if err := u.read(body, p); err != nil {
		return err
	}
	if s.holds(p, 0) && s.link(dir, base) {
		u.disk += onDisk(p)
		return nil
	}
	err := u.create(dir, base, h, func(fd int) error {
		u.disk += onDisk(p)
		if len(p) < chunk {
			return writeAll(fd, p, 0)
		}
		return writeSparse(fd, p, 0, h.Size)
	})
	if err == nil {
		s.written()
	}
	return err
}

// bigFile takes a body that does not fit in memory. It is compared as it
// comes, and written from where it differs from the known file on.
func (u *unpacker) bigFile(s *sharing, dir *folder, base string, h *tar.Header, body io.Reader) error {
	offset, p := int64(0), u.buf[:0]
	for s.known != nil && offset < h.Size {
		p = u.buf[:min(int64(len(u.buf)), h.Size-offset)]
		if err := u.read(body, p); err != nil {
			return err
		}
		if !s.holds(p, offset) {
			break
		}
		u.disk += onDisk(p)
		offset, p = offset+int64(len(p)), p[:0]
	}
	if s.known != nil && offset == h.Size && s.link(dir, base) {
		return nil
	}
	err := u.create(dir, base, h, func(fd int) error {
		if err := s.copyTo(fd, offset); err != nil {
			return err
		}
		for offset < h.Size {
			if len(p) == 0 {
				p = u.buf[:min(int64(len(u.buf)), h.Size-offset)]
				if err := u.read(body, p); err != nil {
					return err
				}
			}
			u.disk += onDisk(p)
			if err := writeSparse(fd, p, offset, h.Size); err != nil {
				return err
			}
			offset, p = offset+int64(len(p)), p[:0]
		}
		return nil
	})
	if err == nil {
		s.written()
	}
	return err
}

func (u *unpacker) read(body io.Reader, p []byte) error {
	_, err := io.ReadFull(body, p)
	if err == nil {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return &bodyError{err}
}

// create makes a file, has it filled and gives it its looks.
func (u *unpacker) create(dir *folder, base string, h *tar.Header, fill func(fd int) error) error {
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
	if err := fill(fd); err != nil {
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

// onDisk is what writeSparse takes for a part of a body.
func onDisk(p []byte) (n int64) {
	if len(p) < chunk {
		return blocks(p)
	}
	for at := 0; at < len(p); at += chunk {
		if part := p[at:min(at+chunk, len(p))]; !isZero(part) {
			n += blocks(part)
		}
	}
	return n
}

func blocks(p []byte) int64 { return (int64(len(p)) + 4095) &^ 4095 }

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// writeSparse writes a part of a body of size bytes in all. It leaves holes
// where a whole chunk is zeros, and writes what is between two holes at once.
func writeSparse(fd int, p []byte, offset, size int64) error {
	start := 0
	for at := 0; at < len(p); at += chunk {
		end := min(at+chunk, len(p))
		if !isZero(p[at:end]) {
			continue
		}
		if err := writeAll(fd, p[start:at], offset+int64(start)); err != nil {
			return err
		}
		start = end
	}
	if start == len(p) && offset+int64(len(p)) == size {
		return unix.Ftruncate(fd, size) // it ends in a hole
	}
	return writeAll(fd, p[start:], offset+int64(start))
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
