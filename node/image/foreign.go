package image

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/base/span"
	"berth/image/blob"
	"berth/image/manifest"
	"berth/node/snapshot"
	"berth/spec"
)

// Part is a layer of an image that is no image of this Set: its names are kept
// elsewhere.
type Part struct {
	ocispec.Descriptor
	DiffID digest.Digest
}

// Source opens the blob of a layer at offset, from wherever it comes.
type Source func(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error)

// Unpack makes layers of parts, as a pull does: fetched and unpacked in one
// pass, side by side, each once however many want it. Their blobs are stored,
// too. Layers and blobs stay until release is called; by then somebody holds
// them, or they are collected. progress may be nil.
func (s *Set) Unpack(ctx context.Context, parts []Part, source Source, progress func(spec.Progress)) (top snapshot.Key, release func(), err error) {
	ctx, end := span.Start(ctx, "unpack layers")
	defer func() { end(err) }()
	s.keeping.begin()
	letGo := sync.OnceFunc(func() { s.endKeeping(context.WithoutCancel(ctx)) })
	defer func() {
		if err != nil {
			letGo()
		}
	}()
	layers := make([]layer, len(parts))
	for n, p := range parts {
		if err := manifest.CheckLayer(p.Descriptor); err != nil {
			return "", nil, err
		}
		if err := p.DiffID.Validate(); err != nil {
			return "", nil, errs.New(errs.Invalid, "diff ID %.80q: %w", p.DiffID, err)
		}
		layers[n] = layer{Descriptor: p.Descriptor, DiffID: p.DiffID}
	}
	report := serial(progress)
	open := func(ctx context.Context, n int) (tarStream, error) {
		return s.openForeign(ctx, layers[n], source, report)
	}
	if _, err := s.unpack(ctx, unpacking{layers: layers, blobs: true, report: report, open: open}); err != nil {
		return "", nil, err
	}
	if len(layers) > 0 {
		keys := chain(layers)
		top = keys[len(keys)-1]
		s.settleChain(ctx, top)
	}
	return top, letGo, nil
}

// openForeign opens the tar of a layer while its blob is stored.
func (s *Set) openForeign(ctx context.Context, l layer, source Source, report func(spec.Progress)) (tarStream, error) {
	stored, err := s.Blobs.Stream(ctx, l.Digest, l.Size, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return source(ctx, l.Descriptor, offset)
	})
	if err != nil {
		return nil, err
	}
	packed := &reporting{Stream: stored, say: func(n int64) {
		report(spec.Progress{Phase: spec.Fetching, Item: l.Digest.String(), Current: n, Total: l.Size})
	}}
	plain, _, err := blob.Uncompress(packed, s.MaxLayer)
	if err != nil {
		return nil, errors.Join(err, packed.Close())
	}
	return &fetchedTar{plain, packed}, nil
}

// reporting says how far a blob is.
type reporting struct {
	*blob.Stream
	read int64
	last time.Time
	say  func(int64)
}

func (r *reporting) Read(p []byte) (int, error) {
	n, err := r.Stream.Read(p)
	r.read += int64(n)
	if n > 0 && (time.Since(r.last) >= every || err != nil) {
		r.last = time.Now()
		r.say(r.read)
	}
	return n, err
}
