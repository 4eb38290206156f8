// Package toc is the table of contents of a layer's blob: where the bodies of
// its files lie, and at which places of the compressed bytes reading can begin,
// so that any of them can be had without those before it.
//
// A table is noted while a blob passes by for the first time (Recorder), or
// comes with the blob itself, as images made by eStargz and zstd:chunked have
// it (see Foreign). Noted ones are kept in a Store, together with all else
// that is wanted of a layer whose bodies are not here.
package toc

import (
	"cmp"
	"errors"
	"io"
	"iter"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/tree"
)

// Body is where the body of a file lies in the content of a layer.
type Body struct {
	Object       tree.Digest
	Offset, Size int64
}

// Table says where the bodies of a layer lie in its blob. It does not change,
// and is safe for concurrent use.
type Table struct {
	Blob        digest.Digest
	Size        int64         // of the blob
	DiffID      digest.Digest // of the content; "" where nobody has read it as a whole
	Content     int64         // bytes of the content
	Compression blob.Compression

	points []point // the first is the beginning
	// apart says that what lies between points is no continuous content: each
	// point is the beginning of something of its own, and only as many bytes
	// as the points are apart are wanted of it.
	apart  bool
	bodies []Body // in the order of their offsets
	places map[tree.Digest]int32
}

// point is a blob.Point whose window is compressed.
type point struct {
	bit, out int64
	window   []byte
	mid      bool // has a window, which may be empty
}

// SetBodies says where the bodies lie: before the table is used. Invalid where
// they lie in each other or beyond the end.
func (t *Table) SetBodies(bodies iter.Seq[Body]) error {
	t.bodies = slices.SortedFunc(bodies, func(a, b Body) int { return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size)) })
	t.places = make(map[tree.Digest]int32, len(t.bodies))
	end := int64(0)
	for i, b := range t.bodies {
		if b.Offset < end || b.Size <= 0 || b.Size > t.Content-b.Offset {
			return errs.New(errs.Invalid, "blob %s: %d bytes at %d are no place of a body", t.Blob, b.Size, b.Offset)
		}
		end = b.Offset + b.Size
		if _, found := t.places[b.Object]; !found {
			t.places[b.Object] = int32(i)
		}
	}
	return nil
}

// Bodies lists where bodies lie, in the order of the content.
func (t *Table) Bodies() []Body { return t.bodies }

// Find says where a body lies.
func (t *Table) Find(d tree.Digest) (Body, bool) {
	i, found := t.places[d]
	if !found {
		return Body{}, false
	}
	return t.bodies[i], true
}

// Longest is how many bytes of the blob must be read at most for one byte of
// content. A table in which that is much is of little use.
func (t *Table) Longest() int64 {
	var longest int64
	for k := range t.points {
		from, to := t.Bytes(Run{k, k})
		longest = max(longest, to-from)
	}
	return longest
}

// Run is a stretch of the blob, from one point to another: spans First to
// Last, both of them included.
type Run struct{ First, Last int }

// Bytes is where the run lies in the blob.
func (t *Table) Bytes(r Run) (from, to int64) {
	from, to = t.points[r.First].bit/8, t.Size
	if next := r.Last + 1; next < len(t.points) {
		to = min(to, (t.points[next].bit+7)/8)
	}
	return from, to
}

// Upto is about where the bytes of a run must be read to for what comes in
// the content before end: a guess, which is most often enough.
func (t *Table) Upto(r Run, end int64) int64 {
	_, to := t.Bytes(r)
	last := Run{t.span(min(end, t.Content) - 1), r.Last}
	if end <= 0 || last.First < r.First || last.First > r.Last {
		return to
	}
	last.Last = last.First
	from, until := t.Bytes(last)
	begin, over := t.content(last)
	share := float64(end-begin) / float64(over-begin)
	return min(to, from+int64(share*1.05*float64(until-from))+guessMargin)
}

// guessMargin is what is read beyond the end of a guess: decoders read ahead.
const guessMargin = 96 << 10

// content is where the run lies in the content.
func (t *Table) content(r Run) (from, to int64) {
	from, to = t.points[r.First].out, t.Content
	if next := r.Last + 1; next < len(t.points) {
		to = t.points[next].out
	}
	return from, to
}

// Around is the run that a body lies in.
func (t *Table) Around(b Body) Run { return Run{t.span(b.Offset), t.span(b.Offset + b.Size - 1)} }

// span is that which byte out of the content lies in. Of several that begin
// there it is the last: the others have nothing in them.
func (t *Table) span(out int64) int {
	i, _ := slices.BinarySearchFunc(t.points, out+1, func(p point, out int64) int { return cmp.Compare(p.out, out) })
	return i - 1
}

// Runs are those in which wanted bodies lie, in the order of the blob. What
// lies between two of them is taken with them where it is at most gap bytes,
// but a run of several spans has at most size.
func (t *Table) Runs(want func(tree.Digest) bool, gap, size int64) []Run {
	var runs []Run
	for _, b := range t.bodies {
		if !want(b.Object) {
			continue
		}
		r := t.Around(b)
		if last := len(runs) - 1; last >= 0 {
			begin, end := t.Bytes(runs[last])
			from, to := t.Bytes(r)
			if r.First <= runs[last].Last || from-end <= gap && to-begin <= size {
				runs[last].Last = max(runs[last].Last, r.Last)
				continue
			}
		}
		runs = append(runs, r)
	}
	return runs
}

// Within lists the bodies that lie wholly in a run.
func (t *Table) Within(r Run) []Body {
	from, to := t.content(r)
	first, _ := slices.BinarySearchFunc(t.bodies, from, func(b Body, at int64) int { return cmp.Compare(b.Offset, at) })
	last := first
	for last < len(t.bodies) && t.bodies[last].Offset+t.bodies[last].Size <= to {
		last++
	}
	return t.bodies[first:last]
}

// Extract reads the blob's bytes of a run from src, and hands the bodies in it
// that are wanted to take, which may leave some of a body unread. Nothing is
// verified. Errors of src and take come through; Invalid: the bytes are
// damaged, or end too early.
func (t *Table) Extract(r Run, src io.Reader, want func(Body) bool, take func(Body, io.Reader) error) error {
	content, err := t.open(r, src)
	if err != nil {
		return err
	}
	defer content.Close()
	at, _ := t.content(r)
	for _, b := range t.Within(r) {
		if !want(b) {
			continue
		}
		if err := skip(content, b.Offset-at); err != nil {
			return err
		}
		body := &io.LimitedReader{R: content, N: b.Size}
		if err := take(b, body); err != nil {
			return err
		}
		if err := skip(content, body.N); err != nil {
			return err
		}
		at = b.Offset + b.Size
	}
	return nil
}

func skip(r io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, n)
	if errors.Is(err, io.EOF) {
		err = errs.New(errs.Invalid, "the blob's content ends too early")
	}
	return err
}

// open gives the content of a run.
func (t *Table) open(r Run, src io.Reader) (io.ReadCloser, error) {
	if t.apart {
		return &pieces{table: t, src: src, span: r.First, last: r.Last}, nil
	}
	p, err := t.points[r.First].open()
	if err != nil {
		return nil, err
	}
	from, to := t.content(r)
	return blob.UncompressFrom(src, t.Compression, p, to-from)
}

// pieces is the content of spans that each begin anew.
type pieces struct {
	table      *Table
	src        io.Reader
	span, last int
	raw        io.LimitedReader // of the blob, in this span
	piece      io.LimitedReader // of the content
	open       io.Closer
}

func (p *pieces) Read(b []byte) (int, error) {
	for {
		if p.open == nil {
			if p.span > p.last {
				return 0, io.EOF
			}
			if err := p.begin(); err != nil {
				return 0, err
			}
		}
		n, err := p.piece.Read(b)
		if errors.Is(err, io.EOF) {
			if p.piece.N > 0 {
				return n, errs.New(errs.Invalid, "a piece of the blob ends too early")
			}
			err = p.end()
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (p *pieces) begin() error {
	run := Run{p.span, p.span}
	from, to := p.table.Bytes(run)
	p.raw = io.LimitedReader{R: p.src, N: to - from}
	begin, end := p.table.content(run)
	r, err := blob.UncompressFrom(&p.raw, p.table.Compression, blob.Point{}, end-begin+1) // there may be more, which is not wanted
	if err != nil {
		return err
	}
	p.piece, p.open = io.LimitedReader{R: r, N: end - begin}, r
	return nil
}

// end leaves a piece; what is left of it is nothing that is wanted.
func (p *pieces) end() error {
	err := errors.Join(p.Close(), skip(&p.raw, p.raw.N))
	p.span++
	return err
}

func (p *pieces) Close() error {
	if p.open == nil {
		return nil
	}
	open := p.open
	p.open = nil
	return open.Close()
}
