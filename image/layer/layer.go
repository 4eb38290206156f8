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
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"math"
	"runtime"

	"berth/image/object"
	"berth/image/tree"
)

// InlineLimit is the size up to which it is best to keep bodies in the tree. A
// sixth of the files of an image, with a thousandth of its bytes, need no
// object then; above it metadata, which every image has its own, grow faster
// than the number of objects falls.
const InlineLimit = 512

// Config says how a layer is read.
type Config struct {
	// Objects takes the bodies. Where it is nil they are only hashed.
	Objects *object.Batch
	// InlineLimit is the size up to which bodies stay in the tree; see the
	// constant.
	InlineLimit int
	// MaxBytes bounds the stream, and what its files hold; 0 is no bound.
	MaxBytes int64
	// Recipe is written to, unless it is nil.
	Recipe io.Writer
	// Hidden, unless it is nil, becomes the bodies that a later entry of the
	// same path hides, sorted: the tree names them no more, the recipe does.
	Hidden *[]tree.Digest
	// Workers store bodies while the stream is read; 0 is as many as there
	// are processors.
	Workers int
}

// Read reads the tar of a layer to the end of the stream, beyond the
// archive's, and returns the tree of what it changes: with whiteouts, opaque
// folders, and folders that are only implied.
func Read(ctx context.Context, cfg Config, layer io.Reader) (*tree.Node, error) {
	var bodies sink = hashes{}
	if cfg.Objects != nil {
		bodies = batch{cfg.Objects}
	}
	return read(ctx, cfg, bodies, layer)
}

func read(ctx context.Context, cfg Config, bodies sink, layer io.Reader) (*tree.Node, error) {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = math.MaxInt64
	}
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	in, err := newStream(&source{ctx: ctx, r: layer, left: cfg.MaxBytes}, bodies, cfg.Workers, cfg.Recipe)
	if err != nil {
		return nil, err
	}
	r := &reader{stream: in, builder: newBuilder(), inline: int64(cfg.InlineLimit), left: cfg.MaxBytes}
	err = r.run()
	if e := in.finish(err != nil); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	r.builder.names.Finish()
	if cfg.Hidden != nil {
		*cfg.Hidden = r.builder.hiddenBodies()
	}
	return r.builder.root, nil
}

// sink takes bodies; from several goroutines at once.
type sink interface {
	put(body []byte) (tree.Digest, error)
	create() (bodyWriter, error)
	// block lends room for object.Block bytes.
	block() *[]byte
	giveBack(*[]byte)
}

// bodyWriter takes one body. Abort after Commit does nothing.
type bodyWriter interface {
	io.Writer
	Commit() (tree.Digest, error)
	Abort()
}

type batch struct{ *object.Batch }

func (b batch) put(body []byte) (tree.Digest, error) { return b.Put(body) }
func (b batch) create() (bodyWriter, error)          { return b.Create() }
func (b batch) block() *[]byte                       { return b.Lend() }
func (b batch) giveBack(p *[]byte)                   { b.GiveBack(p) }

// hashes is a sink that keeps nothing.
type hashes struct{}

func (hashes) put(body []byte) (tree.Digest, error) { return sha256.Sum256(body), nil }
func (hashes) create() (bodyWriter, error)          { return hashWriter{sha256.New()}, nil }
func (hashes) giveBack(*[]byte)                     {}

func (hashes) block() *[]byte {
	b := make([]byte, object.Block)
	return &b
}

type hashWriter struct{ hash.Hash }

func (hashWriter) Abort() {}

func (w hashWriter) Commit() (d tree.Digest, err error) {
	w.Sum(d[:0])
	return d, nil
}
