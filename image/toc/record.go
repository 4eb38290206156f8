package toc

import (
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/blob"
)

// Every is how far points are apart at least, in bytes of content: what must
// be unpacked to get at one byte.
const Every = 4 << 20

// Recorder notes the table of a blob while it passes.
type Recorder struct {
	table    Table
	windows  *zstd.Encoder
	content  io.ReadCloser
	complete bool
}

// Record is blob.Uncompress of the blob d, which has size bytes, and notes
// where reading it can begin.
func Record(r io.Reader, limit int64, d digest.Digest, size int64) (*Recorder, error) {
	windows, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	rec := &Recorder{windows: windows, table: Table{Blob: d, Size: size, points: []point{{}}}}
	rec.content, rec.table.Compression, err = blob.UncompressMarked(r, limit, Every, rec.mark)
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func (r *Recorder) mark(p blob.Point) {
	made := point{bit: p.Bit, out: p.Out, mid: p.Window != nil}
	if made.mid {
		made.window = r.windows.EncodeAll(p.Window, nil)
	}
	r.table.points = append(r.table.points, made)
}

func (r *Recorder) Read(p []byte) (int, error) {
	n, err := r.content.Read(p)
	r.table.Content += int64(n)
	if err == io.EOF {
		r.complete = true
	}
	return n, err
}

// Close ends the reading.
func (r *Recorder) Close() error { return r.content.Close() }

// Table is what was noted of a blob that was read to its end and verified, but
// for its bodies; nil where it was not. diffID is the digest of its content.
func (r *Recorder) Table(diffID digest.Digest) *Table {
	if !r.complete {
		return nil
	}
	t := r.table
	t.DiffID = diffID
	t.plain()
	return &t
}

// plain gives the points of content that is not compressed: anywhere.
func (t *Table) plain() {
	if t.Compression != blob.Plain {
		return
	}
	t.points = t.points[:0]
	for at := int64(0); at < max(t.Content, 1); at += Every {
		t.points = append(t.points, point{bit: at * 8, out: at})
	}
}

// open makes a blob.Point of p.
func (p point) open() (blob.Point, error) {
	made := blob.Point{Bit: p.bit, Out: p.out}
	if !p.mid {
		return made, nil
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20))
	if err != nil {
		return made, err
	}
	defer z.Close()
	made.Window, err = z.DecodeAll(p.window, []byte{})
	if err != nil {
		err = errs.New(errs.Invalid, "window of a point: %w", err)
	}
	return made, err
}
