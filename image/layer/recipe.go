package layer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"

	"berth/base/errs"
	"berth/image/tree"
)

// A recipe is a zstd stream, of one or more frames, of records: a length, that
// many bytes of the tar, then the size and the digest of the body that comes
// next in it. Lengths and sizes are unsigned varints. A record of size 0 has
// no digest; one of length 0 and size 0 is the last. It begins with magic.
const magic = "berth recipe 1\n"

// longest is the most raw bytes that one record has.
const longest = 1 << 20

// appendRecord adds a record to recipe.
func appendRecord(recipe, raw []byte, d tree.Digest, size int64) []byte {
	for len(raw) > longest {
		recipe = binary.AppendUvarint(recipe, longest)
		recipe = append(recipe, raw[:longest]...)
		recipe = append(recipe, 0)
		raw = raw[longest:]
	}
	if len(raw) == 0 && size == 0 {
		return recipe
	}
	recipe = binary.AppendUvarint(recipe, uint64(len(raw)))
	recipe = append(recipe, raw...)
	recipe = binary.AppendUvarint(recipe, uint64(size))
	if size > 0 {
		recipe = append(recipe, d[:]...)
	}
	return recipe
}

var lastRecord = []byte{0, 0}

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
	z, err := zstd.NewReader(recipe, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, 64<<10)
	got := make([]byte, len(magic))
	if _, err := io.ReadFull(in, got); err != nil || string(got) != magic {
		return blame(err)
	}
	var buf []byte
	for {
		n, err := binary.ReadUvarint(in)
		if err != nil || n > longest {
			return blame(err)
		}
		if uint64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		r := record{raw: buf[:n]}
		if _, err := io.ReadFull(in, r.raw); err != nil {
			return blame(err)
		}
		size, err := binary.ReadUvarint(in)
		if r.size = int64(size); err != nil || r.size < 0 {
			return blame(err)
		}
		if r.size == 0 && n == 0 {
			return nil
		}
		if r.size > 0 {
			if _, err := io.ReadFull(in, r.digest[:]); err != nil {
				return blame(err)
			}
		}
		if !yield(r) {
			return nil
		}
	}
}

// blame tells a recipe that is damaged from one that cannot be read.
func blame(err error) error {
	switch {
	case err == nil:
		return errs.New(errs.Invalid, "it is damaged")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isZstd(err):
		return errs.New(errs.Invalid, "it is damaged: %w", err)
	}
	return err
}

func isZstd(err error) bool {
	for _, known := range []error{
		zstd.ErrMagicMismatch, zstd.ErrWindowSizeExceeded, zstd.ErrWindowSizeTooSmall, zstd.ErrDecoderSizeExceeded, zstd.ErrUnknownDictionary,
		zstd.ErrFrameSizeExceeded, zstd.ErrFrameSizeMismatch, zstd.ErrCRCMismatch, zstd.ErrReservedBlockType, zstd.ErrCompressedSizeTooBig, zstd.ErrBlockTooSmall,
		zstd.ErrUnexpectedBlockSize,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
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
