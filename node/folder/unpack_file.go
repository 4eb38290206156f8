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
