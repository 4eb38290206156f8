package layer

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"

	"berth/base/errs"
	"berth/image/tree"
)

// record is one of a recipe. Raw is valid until the next.
type record struct {
	raw    []byte
	digest tree.Digest
	size   int64
}

// records reads a recipe. What it gives may be anything, but for its lengths.
func records(recipe io.Reader) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		if err := readRecords(recipe, func(r record) bool { return yield(r, nil) }); err != nil {
			yield(record{}, fmt.Errorf("read recipe: %w", err))
		}
	}
}

func readRecords(recipe io.Reader, yield func(record) bool) error {
	m := &marked{r: recipe}
	z, err := zstd.NewReader(m, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, 64<<10)
	got := make([]byte, len(magic))
	if _, err := io.ReadFull(in, got); err != nil || string(got) != magic {
		return m.blame(err)
	}
	var buf []byte
	for {
		n, err := binary.ReadUvarint(in)
		if err != nil || n > longest {
			return m.blame(err)
		}
		if uint64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		r := record{raw: buf[:n]}
		if _, err := io.ReadFull(in, r.raw); err != nil {
			return m.blame(err)
		}
		size, err := binary.ReadUvarint(in)
		if r.size = int64(size); err != nil || r.size < 0 {
			return m.blame(err)
		}
		if r.size == 0 && n == 0 {
			return nil
		}
		if r.size > 0 {
			if _, err := io.ReadFull(in, r.digest[:]); err != nil {
				return m.blame(err)
			}
		}
		if !yield(r) {
			return nil
		}
	}
}

// marked remembers why its reader failed.
type marked struct {
	r   io.Reader
	err error
}

func (m *marked) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

// blame tells a recipe that is damaged from one that cannot be read.
func (m *marked) blame(err error) error {
	switch {
	case m.err != nil:
		return m.err
	case err == nil:
		return errs.New(errs.Invalid, "it is damaged")
	}
	return errs.New(errs.Invalid, "it is damaged: %w", err)
}

// Write writes to w the very tar that Read made recipe of. Bodies come from
// open; they are not checked again but for their sizes.
func Write(ctx context.Context, recipe io.Reader, open func(tree.Digest) (io.ReadCloser, error), w io.Writer) error {
	buf := make([]byte, 256<<10)
	for r, err := range records(recipe) {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := w.Write(r.raw); err != nil {
			return err
		}
		if r.size > 0 {
			if err := writeBody(r, open, w, buf); err != nil {
				return fmt.Errorf("body %x: %w", r.digest, err)
			}
		}
	}
	return nil
}

func writeBody(r record, open func(tree.Digest) (io.ReadCloser, error), w io.Writer, buf []byte) error {
	body, err := open(r.digest)
	if err != nil {
		return err
	}
	defer body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.LimitReader(body, r.size)}, buf)
	if err == nil && n < r.size {
		err = errs.New(errs.Invalid, "it ends after %d bytes of %d", n, r.size)
	}
	return err
}

// Body is where a body lies in the tar of a layer.
type Body struct {
	Digest       tree.Digest
	Offset, Size int64
}

// Bodies lists the bodies that a recipe names, in the order of the tar. An
// error ends the list.
func Bodies(recipe io.Reader) iter.Seq2[Body, error] {
	return func(yield func(Body, error) bool) {
		offset := int64(0)
		for r, err := range records(recipe) {
			if err != nil {
				yield(Body{}, err)
				return
			}
			offset += int64(len(r.raw))
			if r.size > 0 && !yield(Body{r.digest, offset, r.size}, nil) {
				return
			}
			if offset += r.size; offset < 0 {
				yield(Body{}, errs.New(errs.Invalid, "read recipe: it is of more than 2^63 bytes"))
				return
			}
		}
	}
}
