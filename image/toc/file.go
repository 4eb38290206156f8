package toc

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/blob"
)

// A file holds a table, and beside it what else is known of the layer: parts
// by name, in which it does not look. It is
//
//	magic, the length of the head (4 bytes, little endian), the head as JSON,
//	the points, the parts one after the other, the sha256 of all that.
//
// Where bodies lie is in it only for tables that came with their blob: else a
// layer's recipe says so, which is a part.
const (
	magic     = "berthtoc"
	headLimit = 1 << 20
	// pointsLimit bounds what the points may take: those of 64 GiB.
	pointsLimit = 2 << 30
)

type head struct {
	Blob        digest.Digest    `json:"blob"`
	Size        int64            `json:"size"`
	DiffID      digest.Digest    `json:"diffID"`
	Content     int64            `json:"content"`
	Compression blob.Compression `json:"compression"`
	Points      int64            `json:"points"` // their bytes
	Apart       bool             `json:"apart,omitempty"`
	Parts       []part           `json:"parts,omitempty"`
}

type part struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Part is something that is kept beside a table.
type Part struct {
	Name string
	Size int64
	Body io.Reader // of Size bytes
}

// Write writes the table, without its bodies, and parts.
func (t *Table) Write(w io.Writer, parts ...Part) error {
	points := t.appendPoints(nil)
	h := head{Blob: t.Blob, Size: t.Size, DiffID: t.DiffID, Content: t.Content, Compression: t.Compression, Points: int64(len(points)), Apart: t.apart}
	if t.apart {
		parts = append(slices.Clip(parts), Bytes(bodiesPart, t.appendBodies(nil)))
	}
	for _, p := range parts {
		h.Parts = append(h.Parts, part{p.Name, p.Size})
	}
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	start := binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(text)))
	if _, err := out.Write(slices.Concat(start, text, points)); err != nil {
		return err
	}
	for _, p := range parts {
		if n, err := io.Copy(out, io.LimitReader(p.Body, p.Size)); err != nil || n < p.Size {
			return fmt.Errorf("%s: %d of %d bytes: %w", p.Name, n, p.Size, cmp.Or(err, io.ErrUnexpectedEOF))
		}
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// appendPoints writes the points as differences: bit, content, the length of
// the window and one (0: none), the window.
func (t *Table) appendPoints(b []byte) []byte {
	if t.Compression == blob.Plain {
		return b
	}
	var last point
	points := t.points[1:]
	if t.apart {
		points = t.points // the first need not be the blob's beginning
	}
	for _, p := range points {
		b = binary.AppendUvarint(b, uint64(p.bit-last.bit))
		b = binary.AppendUvarint(b, uint64(p.out-last.out))
		if last = p; !p.mid {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(p.window))+1)
		b = append(b, p.window...)
	}
	return b
}

// File is a table that is kept. Close it when done.
type File struct {
	Table *Table // without bodies
	file  *os.File
	parts map[string]*io.SectionReader
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// Part opens a part; false where there is none of that name.
func (f *File) Part(name string) (*io.SectionReader, bool) {
	p, ok := f.parts[name]
	if !ok {
		return nil, false
	}
	return io.NewSectionReader(p, 0, p.Size()), true
}

// Read reads what Write wrote, and verifies all of it. On success the file is
// File's. Invalid: it is damaged.
func Read(file *os.File) (*File, error) {
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	f := &File{file: file, parts: map[string]*io.SectionReader{}}
	if f.Table, err = parse(file, st.Size(), f.parts); err != nil {
		return nil, fmt.Errorf("table of contents %s: %w", file.Name(), err)
	}
	return f, nil
}

func parse(file io.ReaderAt, size int64, parts map[string]*io.SectionReader) (*Table, error) {
	damaged := func(what string) error { return errs.New(errs.Invalid, "damaged: %s", what) }
	at := int64(len(magic) + 4)
	start := make([]byte, at)
	if size < at+sha256.Size {
		return nil, damaged("too short")
	}
	if _, err := file.ReadAt(start, 0); err != nil {
		return nil, err
	}
	length := int64(binary.LittleEndian.Uint32(start[len(magic):]))
	if !bytes.HasPrefix(start, []byte(magic)) || length > headLimit || length > size-at-sha256.Size {
		return nil, damaged("the head")
	}
	if err := verify(file, size-sha256.Size, sha256.New()); err != nil {
		return nil, err
	}
	text := make([]byte, length)
	if _, err := file.ReadAt(text, at); err != nil {
		return nil, err
	}
	var h head
	if err := json.Unmarshal(text, &h); err != nil {
		return nil, damaged(err.Error())
	}
	at += length
	left := size - sha256.Size - at
	if h.Points < 0 || h.Points > min(left, pointsLimit) || h.Size < 0 || h.Content < 0 || h.Blob.Validate() != nil {
		return nil, damaged("the head")
	}
	points := make([]byte, h.Points)
	if _, err := file.ReadAt(points, at); err != nil {
		return nil, err
	}
	at, left = at+h.Points, left-h.Points
	for _, p := range h.Parts {
		if p.Size < 0 || p.Size > left {
			return nil, damaged("part " + p.Name)
		}
		parts[p.Name] = io.NewSectionReader(file, at, p.Size)
		at, left = at+p.Size, left-p.Size
	}
	t := &Table{Blob: h.Blob, Size: h.Size, DiffID: h.DiffID, Content: h.Content, Compression: h.Compression, points: []point{{}}}
	if t.Compression == blob.Plain && t.Content != t.Size {
		return nil, damaged("plain content of another size")
	}
	t.plain()
	if err := t.readPoints(points); err != nil || !h.Apart {
		return t, err
	}
	t.apart, t.points = true, t.points[min(1, len(t.points)-1):]
	bodies, ok := parts[bodiesPart]
	if !ok || bodies.Size() > bodiesLimit {
		return nil, damaged("its bodies")
	}
	packed := make([]byte, bodies.Size())
	if _, err := bodies.ReadAt(packed, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return t, t.readBodies(packed)
}

const (
	bodiesPart  = "bodies"
	bodiesLimit = 512 << 20
)

// appendBodies writes the bodies: digest, what lies between it and the one
// before, size.
func (t *Table) appendBodies(b []byte) []byte {
	end := int64(0)
	for _, body := range t.bodies {
		b = append(b, body.Object[:]...)
		b = binary.AppendUvarint(b, uint64(body.Offset-end))
		b = binary.AppendUvarint(b, uint64(body.Size))
		end = body.Offset + body.Size
	}
	return b
}

func (t *Table) readBodies(b []byte) error {
	var bodies []Body
	end := int64(0)
	for len(b) > 0 {
		var body Body
		if len(b) < len(body.Object) {
			return errs.New(errs.Invalid, "damaged: a body")
		}
		b = b[copy(body.Object[:], b):]
		var values [2]int64
		for i := range values {
			v, n := binary.Uvarint(b)
			if n <= 0 || v > 1<<62 {
				return errs.New(errs.Invalid, "damaged: a body")
			}
			values[i], b = int64(v), b[n:]
		}
		body.Offset, body.Size = end+values[0], values[1]
		if end = body.Offset + body.Size; end < 0 || body.Offset < 0 {
			return errs.New(errs.Invalid, "damaged: a body beyond the end")
		}
		bodies = append(bodies, body)
	}
	return t.SetBodies(slices.Values(bodies))
}

// verify holds the first n bytes against the sum behind them.
func verify(file io.ReaderAt, n int64, sum hash.Hash) error {
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, n)); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := file.ReadAt(want, n); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return errs.New(errs.Invalid, "damaged: its checksum is another")
	}
	return nil
}

func (t *Table) readPoints(b []byte) error {
	last := t.points[0]
	for len(b) > 0 {
		var values [3]uint64
		for i := range values {
			v, n := binary.Uvarint(b)
			if n <= 0 || v > 1<<62 {
				return errs.New(errs.Invalid, "damaged: a point")
			}
			values[i], b = v, b[n:]
		}
		p := point{bit: last.bit + int64(values[0]), out: last.out + int64(values[1]), mid: values[2] > 0}
		if p.bit < last.bit || p.bit/8 > t.Size || p.out < last.out || p.out > t.Content {
			return errs.New(errs.Invalid, "damaged: a point beyond the end")
		}
		if p.mid {
			n := values[2] - 1
			if n > uint64(len(b)) {
				return errs.New(errs.Invalid, "damaged: a window")
			}
			p.window, b = b[:n:n], b[n:]
		}
		t.points, last = append(t.points, p), p
	}
	return nil
}
