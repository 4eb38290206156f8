// Package layer turns the tar of a layer into the tree of what it changes and
// the bodies of its files, and back into the very same tar.
//
// Read takes the stream once. Bodies go to the object store, small ones into
// the tree. Of everything else in the tar, and of which bodies were where, it
// can write a recipe: with the objects, Write makes the identical tar of it.
//
// A layer may be hostile. Paths that climb out, go through links that leave
// the layer or are too long, hard links to what is not in it, and values that
// no Linux file system would take are errs.Invalid.
package layer

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
)

// Config says how a layer is read.
type Config struct {
	Objects *object.Batch
	// InlineLimit is the size up to which bodies stay in the tree.
	InlineLimit int
	// MaxBytes bounds the stream, and what its files hold; 0 is no bound.
	MaxBytes int64
	// Recipe is written to, unless it is nil.
	Recipe io.Writer
	// Workers store bodies while the stream is read; 0 is as many as there
	// are processors.
	Workers int
}

// Read reads the tar of a layer to the end of the stream, beyond the
// archive's, and returns the tree of what it changes: with whiteouts, opaque
// folders, and folders that are only implied.
func Read(ctx context.Context, cfg Config, layer io.Reader) (*tree.Node, error) {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = math.MaxInt64
	}
	r := &reader{cfg: cfg, builder: newBuilder(), src: &source{ctx: ctx, r: layer, left: cfg.MaxBytes}}
	r.in = &recorder{r: bufio.NewReaderSize(r.src, 256<<10), on: cfg.Recipe != nil}
	if cfg.Recipe != nil {
		var err error
		r.recipe, err = zstd.NewWriter(cfg.Recipe, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer r.recipe.Close()
		r.in.raw = append(r.in.raw, magic...)
		if _, err := r.recipe.Write(r.in.raw); err != nil {
			return nil, err
		}
		r.in.raw = r.in.raw[:0]
	}
	if err := r.run(); err != nil {
		return nil, err
	}
	r.builder.names.Finish()
	return r.builder.root, nil
}

type reader struct {
	cfg     Config
	builder *builder
	src     *source
	in      *recorder
	recipe  *zstd.Encoder
	size    int64
}

func (r *reader) run() error {
	archive := tar.NewReader(r.in)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return r.src.blame(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := r.entry(h, archive); err != nil {
			return fmt.Errorf("%s: %w", brief(h.Name), err)
		}
		if len(r.in.raw) > longest {
			if err := r.record(tree.Digest{}, 0); err != nil {
				return err
			}
		}
	}
	for {
		n, err := io.CopyN(io.Discard, r.in, longest)
		if e := r.record(tree.Digest{}, 0); e != nil {
			return e
		}
		if n < longest {
			if err != io.EOF {
				return r.src.blame(err)
			}
			break
		}
	}
	if r.recipe != nil {
		if _, err := r.recipe.Write(lastRecord); err != nil {
			return err
		}
		return r.recipe.Close()
	}
	return nil
}

func (r *reader) record(d tree.Digest, size int64) error {
	if r.recipe == nil {
		return nil
	}
	_, err := r.recipe.Write(appendRecord(nil, r.in.raw, d, size))
	r.in.raw = r.in.raw[:0]
	return err
}

func (r *reader) entry(h *tar.Header, body io.Reader) error {
	e := entry{
		kind: h.Typeflag, name: h.Name, link: h.Linkname, mode: h.Mode, uid: int64(h.Uid), gid: int64(h.Gid), size: h.Size,
		sec: h.ModTime.Unix(), nsec: uint32(h.ModTime.Nanosecond()), major: h.Devmajor, minor: h.Devminor,
	}
	sparse := h.Typeflag == tar.TypeGNUSparse
	for name, value := range h.PAXRecords {
		if x, ok := strings.CutPrefix(name, "SCHILY.xattr."); ok {
			e.xattrs = append(e.xattrs, tree.Xattr{Name: x, Value: []byte(value)})
		}
		sparse = sparse || strings.HasPrefix(name, "GNU.sparse.")
	}
	slices.SortFunc(e.xattrs, func(a, b tree.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	n, err := r.builder.add(&e)
	if err != nil || n == nil {
		return err
	}
	n.Size = h.Size
	if r.size += h.Size; r.size > r.cfg.MaxBytes || r.size < 0 {
		return errs.New(errs.Invalid, "the layer unpacks to more bytes than is allowed")
	}
	if n.Size <= int64(r.cfg.InlineLimit) {
		n.Body = make([]byte, n.Size)
		if _, err := io.ReadFull(body, n.Body); err != nil {
			return r.src.blame(err)
		}
		return nil
	}
	on := r.in.on
	r.in.on = on && sparse
	n.Object, _, err = r.cfg.Objects.PutFrom(&marked{r: body, src: r.src}, n.Size)
	r.in.on = on
	if err == nil && !sparse {
		err = r.record(n.Object, n.Size)
	}
	return err
}

type marked struct {
	r   io.Reader
	src *source
}

func (m *marked) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && err != io.EOF {
		err = m.src.blame(err)
	}
	return n, err
}

// recorder keeps what is read through it, while it is on.
type recorder struct {
	r   io.Reader
	on  bool
	raw []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if r.on {
		r.raw = append(r.raw, p[:n]...)
	}
	return n, err
}

// source bounds the stream and remembers whether it was the stream that
// failed, rather than what is in it.
type source struct {
	ctx  context.Context //nolint:containedctx // lives as long as Read
	r    io.Reader
	left int64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if s.left -= int64(n); s.left < 0 {
		err = errs.New(errs.Invalid, "the layer unpacks to more bytes than is allowed")
	}
	if err != nil && err != io.EOF { //nolint:errorlint // readers return io.EOF itself
		s.err = err
	}
	return n, err
}

// blame says whose fault err is: the stream's, with its own kind, or the
// archive's, which is Invalid.
func (s *source) blame(err error) error {
	switch {
	case s.err != nil && !errors.Is(s.err, io.ErrUnexpectedEOF):
		return s.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Invalid, "the layer is cut short: %w", err)
	}
	return errs.New(errs.Invalid, "not a tar archive: %w", err)
}
