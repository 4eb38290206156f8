package layer

import (
	"archive/tar"
	"bytes"
	"io"
	"math"
	"slices"
	"strings"

	"berth/image/object"
	"berth/image/tree"
)

// reader parses a layer.
type reader struct {
	stream  *stream
	builder *builder
	inline  int64
	left    int64 // what bodies may still hold
	ext     extension
	entry   entry
	small   []byte // room for bodies that stay in the tree
}

// pad passes over what is missing to whole blocks of the tar. Behind the last
// entry of some archives it is missing itself.
func (s *stream) pad() error {
	if err := s.skip(-s.offset & (headerSize - 1)); err != nil && !s.ended(err) {
		return s.blame(err)
	}
	return nil
}

// ended says whether err of skip only means that the stream ended.
func (s *stream) ended(err error) bool {
	return !s.failed.Load() && !s.src.failed() && err == io.ErrUnexpectedEOF //nolint:errorlint // skip's own
}

func (r *reader) run() error {
	for {
		err := r.header()
		if err == io.EOF { //nolint:errorlint // header's own
			break
		}
		if err != nil {
			return r.stream.blame(err)
		}
		if err := r.file(); err != nil {
			return r.fault(err)
		}
	}
	if err := r.stream.skip(math.MaxInt64); !r.stream.ended(err) {
		return r.stream.blame(err)
	}
	return nil
}

// file takes in one entry and what follows its header.
func (r *reader) file() error {
	if r.entry.kind == tar.TypeGNUSparse || r.ext.sparse {
		return r.sparse()
	}
	n, err := r.builder.add(&r.entry)
	if err != nil {
		return err
	}
	size := r.entry.size
	if r.entry.headerOnly() {
		size = 0
	}
	if n == nil {
		err = r.stream.skip(size)
	} else {
		err = r.body(n, size)
	}
	if err != nil {
		return r.stream.blame(err)
	}
	return r.stream.pad()
}

func (r *reader) body(n *tree.Node, size int64) error {
	n.Size = size
	if r.left -= size; r.left < 0 {
		return errTooBig
	}
	if size > r.inline {
		return r.stream.body(n, size)
	}
	if size == 0 {
		return nil
	}
	if err := r.builder.spend(int(size)); err != nil {
		return err
	}
	n.Body = r.roomFor(int(size))
	for at := 0; at < len(n.Body); {
		if err := r.stream.need(1); err != nil {
			return short(err)
		}
		at += copy(n.Body[at:], r.stream.take(min(len(n.Body)-at, r.stream.end-r.stream.pos)))
	}
	return nil
}

// roomFor makes room for a body in the tree. Small ones share an allocation.
func (r *reader) roomFor(n int) []byte {
	const together = 8 << 10
	if n > together/4 {
		return make([]byte, n)
	}
	if n > len(r.small) {
		r.small = make([]byte, together)
	}
	p := r.small[:n:n]
	r.small = r.small[n:]
	return p
}

// sparse takes in a file that the archive keeps without its holes. Few
// layers have one, so the recipe keeps what the archive says of it.
func (r *reader) sparse() error {
	s, size := r.stream, r.entry.size
	begin := s.offset
	archive := tar.NewReader(io.MultiReader(bytes.NewReader(r.ext.raw), (*taker)(s)))
	h, err := archive.Next()
	if err != nil {
		return s.blame(short(err))
	}
	if h.Typeflag == tar.TypeGNUSparse {
		begin = s.offset // behind more headers
	}
	e := entryOf(h)
	n, err := r.builder.add(&e)
	if err == nil && n != nil {
		err = r.sparseBody(n, h.Size, archive)
	}
	if err != nil {
		return err
	}
	if e.headerOnly() {
		size = 0
	}
	if err := s.skip(begin + size - s.offset); err != nil {
		return s.blame(err)
	}
	return s.pad()
}

func (r *reader) sparseBody(n *tree.Node, size int64, body io.Reader) error {
	n.Size = size
	if r.left -= size; r.left < 0 {
		return errTooBig
	}
	if size <= r.inline {
		n.Body = make([]byte, size)
		if _, err := io.ReadFull(body, n.Body); err != nil {
			return r.stream.blame(short(err))
		}
		return nil
	}
	room := r.stream.sink.block()
	defer r.stream.sink.giveBack(room)
	if size <= object.Block {
		p := (*room)[:size]
		_, err := io.ReadFull(body, p)
		if err != nil {
			return r.stream.blame(short(err))
		}
		n.Object, err = r.stream.sink.put(p)
		return err
	}
	w, err := r.stream.sink.create()
	if err != nil {
		return err
	}
	defer w.Abort()
	for left := size; left > 0; {
		if err := r.stream.src.ctx.Err(); err != nil {
			return err
		}
		p := (*room)[:min(left, object.Block)]
		if _, err := io.ReadFull(body, p); err != nil {
			return r.stream.blame(short(err))
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	n.Object, err = w.Commit()
	return err
}

// taker reads on in a stream.
type taker stream

func (t *taker) Read(p []byte) (int, error) {
	s := (*stream)(t)
	if err := s.need(1); err != nil {
		return 0, err
	}
	return copy(p, s.take(min(len(p), s.end-s.pos))), nil
}

func entryOf(h *tar.Header) entry {
	e := entry{
		kind: h.Typeflag, name: h.Name, link: h.Linkname, mode: h.Mode, uid: int64(h.Uid), gid: int64(h.Gid), size: h.Size,
		sec: h.ModTime.Unix(), nsec: uint32(h.ModTime.Nanosecond()), major: h.Devmajor, minor: h.Devminor,
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			e.xattrs = append(e.xattrs, tree.Xattr{Name: name, Value: []byte(value)})
		}
	}
	slices.SortFunc(e.xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return e
}
