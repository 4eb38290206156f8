package blob

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"berth/base/errs"
	"berth/base/inflate"
)

// Point is a place in compressed content at which reading can begin.
type Point struct {
	Bit int64 // of the compressed content; a byte's lowest bit is its first
	Out int64 // bytes of the uncompressed content before it
	// Window is what gzip needs of the content before it. Where it is nil, a
	// member or a frame begins here.
	Window []byte
}

// In is the byte of the compressed content with which reading begins.
func (p Point) In() int64 { return p.Bit / 8 }

// UncompressMarked is Uncompress, and calls mark for points at least every
// bytes of content apart, while it is read; the beginning is no point. Plain
// content has none, and zstd has one only where a frame begins.
func UncompressMarked(r io.Reader, limit, every int64, mark func(Point)) (io.ReadCloser, Compression, error) {
	return uncompress(r, limit, &marker{every: every, mark: mark})
}

// UncompressFrom reads content of the compression c from p on: r begins with
// byte p.In(). Limit and errors are as with Uncompress.
func UncompressFrom(r io.Reader, c Compression, p Point, limit int64) (io.ReadCloser, error) {
	in := &marked{r: r}
	u := &uncompressed{source: in, compression: c, left: limit, limit: limit, close: func() {}}
	b := bufio.NewReaderSize(in, bufferSize)
	switch c {
	case Gzip:
		if err := u.gzip(b, p); err != nil {
			return nil, u.explain(err)
		}
	case Zstd:
		z, err := newZstd(b)
		if err != nil {
			return nil, u.explain(err)
		}
		u.r, u.close = z, z.Close
	case Plain:
		u.r = b
	default:
		return nil, errs.New(errs.Unsupported, "compression %q", c)
	}
	return u, nil
}

func (u *uncompressed) gzip(r io.Reader, p Point) (err error) {
	if p.Window == nil {
		u.r, err = inflate.NewReader(r)
		return err
	}
	u.r, err = inflate.Resume(r, inflate.Checkpoint{Bit: p.Bit, Out: p.Out, Window: p.Window})
	return err
}

func newZstd(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true))
}

// marker says when points are wanted.
type marker struct {
	every int64
	mark  func(Point)
}

func (m *marker) gzip(z *inflate.Reader) {
	z.Mark(m.every, func(c inflate.Checkpoint) {
		if c.Window == nil {
			c.Window = []byte{} // no member begins here: its header is over
		}
		m.mark(Point(c))
	})
}

// frames reads zstd frame by frame, so that it knows where each begins.
type frames struct {
	src     *bufio.Reader
	decoder *zstd.Decoder
	frame   frame
	marker  *marker
	open    bool
	in, out int64
	last    int64 // content before the newest point
}

func newFrames(src *bufio.Reader, m *marker) (*frames, error) {
	z, err := newZstd(nil)
	if err != nil {
		return nil, err
	}
	return &frames{src: src, decoder: z, marker: m}, nil
}

func (f *frames) Read(p []byte) (int, error) {
	for {
		if !f.open {
			if err := f.begin(); err != nil {
				return 0, err
			}
		}
		n, err := f.decoder.Read(p)
		f.out += int64(n)
		if errors.Is(err, io.EOF) {
			err, f.open = f.frame.drain(), false
			f.in += f.frame.read
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// begin opens the next frame; io.EOF where there is none more.
func (f *frames) begin() error {
	if _, err := f.src.Peek(1); err != nil {
		return err
	}
	if f.in > 0 && f.out-f.last >= f.marker.every {
		f.last = f.out
		f.marker.mark(Point{Bit: f.in * 8, Out: f.out})
	}
	f.frame = frame{src: f.src}
	f.open = true
	return f.decoder.Reset(&f.frame)
}

// frame passes one zstd frame of its source, and then ends.
type frame struct {
	src  *bufio.Reader
	part int64 // bytes that can be passed before the next header
	next func() error
	read int64
	sum  bool
	last bool
}

func (f *frame) Read(p []byte) (int, error) {
	for f.part == 0 {
		if f.next == nil && f.read > 0 {
			return 0, io.EOF
		}
		if f.next == nil {
			f.next = f.head
		}
		if err := f.next(); err != nil {
			return 0, err
		}
		if f.part == 0 && f.next == nil {
			return 0, io.EOF
		}
	}
	n, err := f.src.Read(p[:min(int64(len(p)), f.part)])
	f.part -= int64(n)
	f.read += int64(n)
	if errors.Is(err, io.EOF) && f.part > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// drain passes what the decoder had no need of.
func (f *frame) drain() error {
	if f.read == 0 {
		return io.ErrUnexpectedEOF
	}
	_, err := io.Copy(io.Discard, f)
	return err
}

func (f *frame) peek(n int) ([]byte, error) {
	b, err := f.src.Peek(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// head looks at the frame's header: RFC 8878, section 3.1.1.1, or at that of
// a frame to skip.
func (f *frame) head() error {
	b, err := f.peek(5)
	if err != nil {
		return err
	}
	switch magic := binary.LittleEndian.Uint32(b); {
	case magic&^0xf == 0x184D2A50:
		if b, err = f.peek(8); err != nil {
			return err
		}
		f.part, f.next = 8+int64(binary.LittleEndian.Uint32(b[4:])), nil
	case magic == 0xFD2FB528:
		flags := b[4]
		single := flags >> 5 & 1
		sizes := [4]int64{int64(single), 2, 4, 8}
		f.part = 5 + int64(1-single) + [4]int64{0, 1, 2, 4}[flags&3] + sizes[flags>>6]
		f.sum = flags&4 != 0
		f.next = f.block
	default:
		return errs.New(errs.Invalid, "no frame begins where one should")
	}
	return nil
}

func (f *frame) block() error {
	if f.last {
		f.next = nil
		if f.sum {
			f.part = 4
		}
		return nil
	}
	b, err := f.peek(3)
	if err != nil {
		return err
	}
	head := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
	f.last = head&1 == 1
	f.part = 3 + int64(head>>3)
	if head>>1&3 == 1 { // one byte that is repeated
		f.part = 4
	}
	return nil
}
