package inflate

import (
	"hash/crc32"
	"io"
)

// The flags of a member's header.
const (
	hasChecksum = 1 << (iota + 1)
	hasExtra
	hasName
	hasComment
)

// header reads the beginning of a member; io.EOF where there is none more.
func (r *Reader) header() error {
	r.giveBack()
	r.bits, r.valid = 0, 0 // a member begins at a byte
	if err := r.more(); err != nil {
		return err
	}
	if r.pos == r.end {
		return io.EOF
	}
	r.sum = 0
	var head [10]byte
	for i := range head {
		var err error
		if head[i], err = r.headerByte(); err != nil {
			return err
		}
	}
	if head[0] != 0x1f || head[1] != 0x8b || head[2] != 8 {
		return damaged("no gzip header")
	}
	if err := r.skip(head[3]); err != nil {
		return err
	}
	r.sum, r.size, r.last, r.base, r.next = 0, 0, false, r.w, r.block
	return nil
}

// skip reads over what a header may hold besides.
func (r *Reader) skip(flags byte) error {
	if flags&hasExtra != 0 {
		low, err := r.headerByte()
		if err != nil {
			return err
		}
		high, err := r.headerByte()
		if err != nil {
			return err
		}
		for range int(low) | int(high)<<8 {
			if _, err := r.headerByte(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{hasName, hasComment} {
		for text := flags&flag != 0; text; {
			c, err := r.headerByte()
			if err != nil {
				return err
			}
			text = c != 0
		}
	}
	if flags&hasChecksum != 0 {
		want := uint16(r.sum)
		got, err := r.take(16)
		if err != nil {
			return err
		}
		if uint16(got) != want {
			return damaged("a gzip header with a wrong checksum")
		}
	}
	return nil
}

func (r *Reader) headerByte() (byte, error) {
	v, err := r.take(8)
	c := byte(v)
	r.sum = crc32.Update(r.sum, crc32.IEEETable, []byte{c})
	return c, err
}

// trailer checks the end of a member against what came out of it.
func (r *Reader) trailer() error {
	r.giveBack()
	r.bits, r.valid = 0, 0
	sum, err := r.take(32)
	if err != nil {
		return err
	}
	size, err := r.take(32)
	if err != nil {
		return err
	}
	if r.marking.resumed {
		r.marking.resumed = false
		return nil
	}
	if sum != r.sum || size != r.size {
		return damaged("a gzip checksum or size that is not the content's")
	}
	return nil
}
