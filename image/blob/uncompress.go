package blob

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"berth/base/errs"
	"berth/base/inflate"
)

// Compression of a layer or archive.
type Compression string

// The compressions that images use.
const (
	Plain Compression = "plain"
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// DefaultLimit bounds what one layer may unpack to where nothing else is
// configured. The largest images in use (models, games) stay below it; a
// bomb of some kilobytes does not get to fill a disk.
const DefaultLimit = 64 << 30

// zstdWindow bounds the memory of one zstd stream. Encoders use 8 MiB at
// their usual levels, 128 MiB with --ultra --long.
const zstdWindow = 128 << 20

// Detect tells how content is compressed by its first four bytes.
func Detect(magic []byte) Compression {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return Gzip
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) >= 4 && magic[0]>>4 == 5 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd // the second is a frame to skip, with which some begin
	}
	return Plain
}

// Uncompress tells gzip, zstd and plain content apart by its first bytes
// and returns the content. Reading more than limit bytes fails with
// errs.Exhausted, damaged content with errs.Invalid; errors of r come
// through as they are. Closing does not close r.
func Uncompress(r io.Reader, limit int64) (io.ReadCloser, Compression, error) {
	return uncompress(r, limit, nil)
}

func uncompress(r io.Reader, limit int64, m *marker) (io.ReadCloser, Compression, error) {
	in := &marked{r: r}
	b := bufio.NewReaderSize(in, bufferSize)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	u := &uncompressed{source: in, left: limit, limit: limit, close: func() {}}
	switch Detect(magic) {
	case Gzip:
		z, err := inflate.NewReader(b)
		if err != nil {
			return nil, "", u.explain(err)
		}
		u.r, u.compression = z, Gzip
		if m != nil {
			m.gzip(z)
		}
	case Zstd:
		if m != nil {
			f, err := newFrames(b, m)
			if err != nil {
				return nil, "", u.explain(err)
			}
			u.r, u.compression, u.close = f, Zstd, f.decoder.Close
			break
		}
		z, err := newZstd(b)
		if err != nil {
			return nil, "", u.explain(err)
		}
		u.r, u.compression, u.close = z, Zstd, z.Close
	default:
		u.r, u.compression = b, Plain
	}
	return u, u.compression, nil
}

// uncompressed counts what comes out and names what goes wrong.
type uncompressed struct {
	r           io.Reader
	source      *marked
	compression Compression
	left, limit int64
	close       func()
}

func (u *uncompressed) Read(p []byte) (int, error) {
	if u.left < 0 {
		return 0, errs.New(errs.Exhausted, "content unpacks to more than the allowed %d bytes", u.limit)
	}
	if int64(len(p)) > u.left+1 {
		p = p[:u.left+1] // one more than allowed, to see whether there is more
	}
	n, err := u.r.Read(p)
	u.left -= int64(n)
	if u.left < 0 {
		return n - 1, errs.New(errs.Exhausted, "content unpacks to more than the allowed %d bytes", u.limit)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = u.explain(err)
	}
	return n, err
}

func (u *uncompressed) Close() error { u.close(); return nil }

// explain tells damaged content from a source that failed. Only the end of
// the content itself passes as io.EOF; a compressed stream cut short has not
// ended.
func (u *uncompressed) explain(err error) error {
	if u.source.err != nil {
		return u.source.err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return errs.New(errs.Invalid, "%s content is damaged: %w", u.compression, err)
}

// marked remembers why its reader failed.
type marked struct {
	r   io.Reader
	err error
}

func (m *marked) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		m.err = err
	}
	return n, err
}
