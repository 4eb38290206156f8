// Package inflate reads gzip (RFC 1952) and what is in it, deflate (RFC 1951).
// Unpacking an image is for the most part this, so it is written for speed:
// input is taken eight bytes at a time, a table lookup gives one or two
// literals or a whole length, and matches are copied by words. It reads ahead
// of what it has decoded, so nothing of its source may be wanted by another.
package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"berth/base/errs"
)

const (
	history = 32 << 10  // how far back a match may reach
	fresh   = 128 << 10 // decoded before anything is handed out
	longest = 258       // a match
	slack   = 16        // words written beyond a match, or literals of one entry
	inSize  = 64 << 10
	padding = 16 // zeros behind the last input, so that words can be read there
	atLeast = 16 // input wanted at hand, unless the source has ended
)

// Reader gives what a gzip stream holds; members that follow one another are
// one content. Damaged content fails with errs.Invalid, a stream cut short
// with io.ErrUnexpectedEOF; errors of the source come through as they are.
type Reader struct {
	src io.Reader
	in  []byte // in[pos:end] is not in bits yet; zeros follow end
	pos int
	end int
	// bits holds the next valid ones, the first lowest. Above valid there may
	// be more of the input, which is read again.
	bits   uint64
	valid  uint
	srcErr error

	out  []byte // out[:w] is decoded; the last 32 KiB of it are history
	w    int
	read int // out[read:w] is still to be handed out
	base int // the first byte of this member in out; matches start there at the earliest

	next  func() error // what comes next in the stream
	err   error
	last  bool // the block is the member's last
	store int  // bytes left of a stored block
	sum   uint32
	size  uint32

	marking marking

	lit, dist, pre tables
	codes          codes
	lengths        [maxLit + maxDist]uint8
}

// NewReader reads the header of the first member.
func NewReader(src io.Reader) (*Reader, error) {
	r := newReader(src)
	if err := r.header(); err != nil {
		return nil, err
	}
	return r, nil
}

func newReader(src io.Reader) *Reader {
	return &Reader{src: src, in: make([]byte, inSize+padding), out: make([]byte, history+fresh+longest+slack), codes: newCodes()}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.read == r.w && r.err == nil {
		r.fill()
	}
	if r.read == r.w {
		return 0, r.err
	}
	n := copy(p, r.out[r.read:r.w])
	r.read += n
	return n, nil
}

// fill decodes until the buffer is full or the content has ended.
func (r *Reader) fill() {
	if r.w >= history+fresh {
		keep := r.w - history
		copy(r.out, r.out[keep:r.w])
		r.base = max(0, r.base-keep)
		r.marking.gone += int64(keep)
		r.w, r.read = history, history
	}
	from := r.w
	for r.err == nil && r.w < history+fresh {
		if r.err = r.next(); r.member(from) {
			from = r.w
		}
	}
	r.tally(from)
}

// tally counts out[from:] in.
func (r *Reader) tally(from int) {
	r.sum = crc32.Update(r.sum, crc32.IEEETable, r.out[from:r.w])
	r.size += uint32(r.w - from)
}

// member ends a member once its last block has been decoded: the end is
// checked against what came out, and the header of another may follow.
func (r *Reader) member(from int) bool {
	if r.err != io.EOF { //nolint:errorlint // our own mark, never wrapped
		return false
	}
	r.tally(from)
	r.err = r.trailer()
	if r.err == nil {
		r.err = r.header()
	}
	return true
}

// more reads input until there is enough at hand or the source has ended.
// Bits are given back first, so that there is one truth of where we are.
func (r *Reader) more() error {
	r.giveBack()
	if r.end-r.pos >= atLeast {
		return nil
	}
	copy(r.in, r.in[r.pos:r.end])
	r.end -= r.pos
	r.pos = 0
	empty := 0
	for r.end < atLeast && r.srcErr == nil {
		n, err := r.src.Read(r.in[r.end:inSize])
		r.end += n
		r.marking.got += int64(n)
		r.srcErr = err
		if empty++; n > 0 {
			empty = 0
		}
		if empty > 100 {
			r.srcErr = io.ErrNoProgress
		}
	}
	clear(r.in[r.end : r.end+padding])
	if r.srcErr != nil && !errors.Is(r.srcErr, io.EOF) && r.end < atLeast {
		return r.srcErr
	}
	return nil
}

// giveBack returns whole bytes from bits to the input.
func (r *Reader) giveBack() {
	r.pos -= int(r.valid >> 3)
	r.valid &= 7
	r.bits &= 1<<r.valid - 1
}

// need has at least n valid bits at hand, n at most 32.
func (r *Reader) need(n uint) error {
	if r.valid >= n {
		return nil
	}
	if err := r.more(); err != nil {
		return err
	}
	for r.valid < n {
		if r.pos == r.end {
			return io.ErrUnexpectedEOF
		}
		r.bits |= uint64(r.in[r.pos]) << r.valid
		r.pos++
		r.valid += 8
	}
	return nil
}

func (r *Reader) take(n uint) (uint32, error) {
	if err := r.need(n); err != nil {
		return 0, err
	}
	v := uint32(r.bits & (1<<n - 1))
	r.bits >>= n
	r.valid -= n
	return v, nil
}

// block reads the beginning of the next block.
func (r *Reader) block() error {
	if r.last {
		return io.EOF
	}
	if r.marking.mark != nil {
		r.checkpoint()
	}
	head, err := r.take(3)
	if err != nil {
		return err
	}
	r.last = head&1 == 1
	switch head >> 1 {
	case 0:
		return r.stored()
	case 1:
		if err := r.fixed(); err != nil {
			return err
		}
	case 2:
		if err := r.dynamic(); err != nil {
			return err
		}
	default:
		return damaged("a block of an unknown kind")
	}
	r.next = r.compressed
	return nil
}

func (r *Reader) stored() error {
	r.giveBack()
	r.bits, r.valid = 0, 0
	size, err := r.take(32)
	if err != nil {
		return err
	}
	if uint16(size) != ^uint16(size>>16) {
		return damaged("a stored block of a wrong length")
	}
	r.store = int(size & 0xffff)
	r.next = r.copyStored
	return nil
}

func (r *Reader) copyStored() error {
	r.giveBack()
	for r.store > 0 && r.w < history+fresh {
		if err := r.more(); err != nil {
			return err
		}
		if r.pos == r.end {
			return io.ErrUnexpectedEOF
		}
		n := copy(r.out[r.w:min(r.w+r.store, history+fresh)], r.in[r.pos:r.end])
		r.pos += n
		r.w += n
		r.store -= n
	}
	if r.store == 0 {
		r.next = r.block
	}
	return nil
}

// compressed decodes until the block's end, or until the buffer is full.
func (r *Reader) compressed() error {
	for r.w < history+fresh {
		if err := r.more(); err != nil {
			return err
		}
		w := r.w
		end, err := r.run()
		// Zeros behind the source's end may have been read as if they were
		// input; then more bits were used up than there were.
		if r.giveBack(); r.pos > r.end {
			r.w = w
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if end {
			r.next = r.block
			return nil
		}
	}
	return nil
}

// run decodes symbols while there is input and room for the longest of them,
// and says whether it came to the block's end.
func (r *Reader) run() (ended bool, err error) {
	in, out := r.in, r.out
	pos, w, bits, valid := r.pos, r.w, r.bits, r.valid
	lit, dist := r.lit.first(litBits), r.dist.first(distBits)
	// A round reads two words, the second up to eight bytes on. The last
	// sixteen bytes of the source are for single rounds.
	stop := max(r.end-atLeast, pos)
	const full = history + fresh
	_ = out[full+longest+slack-1]
loop:
	for pos <= stop && w < full {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (valid & 63)
		pos += int((63 - valid) >> 3)
		valid |= 56

		// Of at least 56 bits, three lookups take 33 and leave the 20 of the
		// longest length, but not its distance.
		e := lit[bits&(1<<litBits-1)]
		for range 3 {
			if e&literal == 0 {
				break
			}
			binary.LittleEndian.PutUint16(out[w:], uint16(e>>valueShift))
			w += int(e >> countShift & 3)
			bits >>= e & 63
			valid -= uint(e & 63)
			e = lit[bits&(1<<litBits-1)]
		}
		if e&literal != 0 {
			continue
		}
		if e&special != 0 {
			switch {
			case e&pointer != 0:
				bits >>= litBits
				valid -= litBits
				e = r.lit.all[e>>valueShift+uint32(bits)&(1<<(e&63)-1)]
				if e&literal != 0 {
					out[w] = byte(e >> valueShift)
					w++
					bits >>= e & 63
					valid -= uint(e & 63)
					continue
				}
				if e&special == 0 {
					break
				}
				if e&endOfBlock == 0 {
					err = damaged("a code that stands for nothing")
					break loop
				}
				fallthrough
			case e&endOfBlock != 0:
				bits >>= e & 63
				valid -= uint(e & 63)
				ended = true
				break loop
			default:
				err = damaged("a code that stands for nothing")
				break loop
			}
		}
		length := int(e>>valueShift) + int(bits&(1<<(e&63)-1)>>(e>>codeShift&15))
		bits >>= e & 63
		valid -= uint(e & 63)

		bits |= binary.LittleEndian.Uint64(in[pos:]) << (valid & 63)
		pos += int((63 - valid) >> 3)
		valid |= 56
		e = dist[bits&(1<<distBits-1)]
		if e&special != 0 {
			if e&pointer != 0 {
				bits >>= distBits
				valid -= distBits
				e = r.dist.all[e>>valueShift+uint32(bits)&(1<<(e&63)-1)]
			}
			if e&special != 0 {
				err = damaged("a distance that stands for nothing")
				break loop
			}
		}
		from := w - int(e>>valueShift) - int(bits&(1<<(e&63)-1)>>(e>>codeShift&15))
		bits >>= e & 63
		valid -= uint(e & 63)
		if from < r.base {
			err = damaged("a match from before the beginning")
			break loop
		}
		if end := w + length; w-from >= 8 {
			for w < end {
				binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
				w += 8
				from += 8
			}
			w = end
		} else {
			for ; w < end; w++ {
				out[w] = out[from]
				from++
			}
		}
	}
	r.pos, r.w, r.bits, r.valid = pos, w, bits, valid
	if valid < 64 {
		r.bits &= 1<<valid - 1
	}
	return ended, err
}

func damaged(what string) error { return errs.New(errs.Invalid, "deflate: %s", what) }
