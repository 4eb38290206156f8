package inflate

import (
	"io"

	"berth/base/errs"
)

// Window is how many bytes before a checkpoint a match behind it may want.
const Window = history

// Checkpoint is a place in a gzip stream at which reading can begin.
type Checkpoint struct {
	Bit    int64  // of the compressed stream; a byte's lowest bit is its first
	Out    int64  // bytes of content before it
	Window []byte // the content right before it, Window bytes at most
}

// marking is when checkpoints are taken, and where what has been read lies in
// the whole stream.
type marking struct {
	mark  func(Checkpoint)
	every int64
	last  int64 // content before the newest checkpoint

	got     int64 // bytes taken from the source, those before a resumed one included
	gone    int64 // content that has left the buffer
	resumed bool  // into this member: its checksum cannot be known
}

// Mark calls fn for checkpoints that lie at least every bytes of content
// apart, while the stream is read. They lie between blocks, so where an
// encoder writes long blocks they are further apart. The window is fn's to
// keep. Call Mark before the first Read.
func (r *Reader) Mark(every int64, fn func(Checkpoint)) {
	r.marking.every, r.marking.mark = every, fn
}

// checkpoint is taken before the head of a block.
func (r *Reader) checkpoint() {
	m := &r.marking
	out := m.gone + int64(r.w)
	if out-m.last < m.every {
		return
	}
	m.last = out
	from := max(r.base, r.w-history)
	m.mark(Checkpoint{
		Bit: (m.got-int64(r.end-r.pos))*8 - int64(r.valid), Out: out,
		Window: append([]byte(nil), r.out[from:r.w]...),
	})
}

// Resume reads on from a checkpoint. src begins with the byte that holds bit
// c.Bit, or that bit is the first of. The checksum of the member that the
// checkpoint lies in is not checked; those of later members are.
func Resume(src io.Reader, c Checkpoint) (*Reader, error) {
	if c.Bit < 0 || c.Out < int64(len(c.Window)) || len(c.Window) > history {
		return nil, errs.New(errs.Invalid, "deflate: a checkpoint that cannot be")
	}
	r := newReader(src)
	r.w = copy(r.out, c.Window)
	r.read = r.w
	r.marking.gone, r.marking.last = c.Out-int64(r.w), c.Out
	r.marking.got, r.marking.resumed = c.Bit/8, true
	r.next = r.block
	if _, err := r.take(uint(c.Bit % 8)); err != nil {
		return nil, err
	}
	return r, nil
}
