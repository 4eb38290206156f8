// Package pull brings images from registries into the blob store. A pull
// resolves the name, picks the manifest of the wanted platform and stores
// index, manifest and configuration; the layers are then streams, each
// downloaded once however many pulls want it (see blob.Stream), taken up
// again after a cut and verified while they are read.
package pull

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/blob"
	"berth/image/manifest"
	"berth/image/reference"
	"berth/image/remote"
	"berth/spec"
)

// Config is what a Puller works with.
type Config struct {
	Blobs  *blob.Store
	Remote remote.Config
	// Parallel is how many layers one image downloads at a time; 4 if zero.
	Parallel int
	// Limit bounds what one layer may unpack to; blob.DefaultLimit if zero.
	Limit int64
	// Pass lets the layers' blobs pass by without storing them.
	Pass bool
	Log  *slog.Logger
}

// Puller begins pulls. Safe for concurrent use.
type Puller struct{ cfg Config }

// New returns a Puller.
func New(cfg Config) *Puller {
	if cfg.Parallel == 0 {
		cfg.Parallel = 4
	}
	if cfg.Limit == 0 {
		cfg.Limit = blob.DefaultLimit
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Remote.Log == nil {
		cfg.Remote.Log = cfg.Log
	}
	return &Puller{cfg: cfg}
}

// Image is an image that is being pulled. What its fields name, layers
// excepted, is in the blob store. Close it when done.
type Image struct {
	Name reference.Name
	// Target is what the name stands for: an index, or the manifest itself.
	Target   ocispec.Descriptor
	Manifest ocispec.Descriptor
	Platform ocispec.Platform
	// ConfigDescriptor's digest is the image's ID.
	ConfigDescriptor ocispec.Descriptor
	Config           ocispec.Image
	Layers           []Layer // lowest first

	cfg      Config
	repo     *remote.Repository
	progress *progress
	slots    chan struct{}
}

// Layer is one layer of an image.
type Layer struct {
	ocispec.Descriptor
	DiffID digest.Digest // of the unpacked tar
}

// Open resolves req and fetches everything but the layers. progress may be
// nil; it is called from one goroutine at a time. Kinds of its errors:
// Invalid (the reference, or what the registry gave), NotFound (no such
// image, or none for the platform; the text names those there are),
// Anonymous, Denied, Exhausted (429), Unavailable, Timeout, Unsupported.
func (p *Puller) Open(ctx context.Context, req spec.PullRequest, report func(spec.Progress)) (_ *Image, err error) {
	name, err := reference.Parse(req.Reference)
	if err != nil {
		return nil, err
	}
	want, err := manifest.ParsePlatform(req.Platform)
	if err != nil {
		return nil, err
	}
	i := &Image{Name: name, cfg: p.cfg, progress: &progress{report: report}, slots: make(chan struct{}, p.cfg.Parallel)}
	i.repo, err = remote.Open(ctx, p.cfg.Remote, name, remote.Access{Auth: req.Auth, Insecure: req.Insecure, Retrying: i.progress.retrying})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			i.Close()
		}
	}()
	i.progress.send(spec.Progress{Phase: spec.Resolving, Item: name.String()})
	if i.Target, err = i.target(ctx); err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name.Familiar(), err)
	}
	if err := i.descend(ctx, want); err != nil {
		return nil, fmt.Errorf("pull %s: %w", name.Familiar(), err)
	}
	i.progress.send(spec.Progress{Phase: spec.Resolving, Item: name.String(), Status: "complete"})
	return i, nil
}

// Close lets go of the registry. Streams must be closed before.
func (i *Image) Close() { i.repo.Close() }

// Stream downloads layer n and gives its compressed bytes: see blob.Stream
// for its promises, of which the one about Close matters most. It waits
// while Config.Parallel other layers of this image are on their way; so
// read those you have opened.
func (i *Image) Stream(ctx context.Context, n int) (*Stream, error) {
	layer := i.Layers[n]
	select {
	case i.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	st, err := i.open(ctx, layer)
	if err != nil {
		<-i.slots
		return nil, fmt.Errorf("layer %s: %w", layer.Digest, err)
	}
	s := &Stream{Reading: st, image: i, layer: layer.Descriptor, free: sync.OnceFunc(func() { <-i.slots })}
	s.begin()
	return s, nil
}

func (i *Image) open(ctx context.Context, layer Layer) (blob.Reading, error) {
	if i.cfg.Pass {
		return i.cfg.Blobs.Pass(ctx, layer.Digest, layer.Size, i.source(layer.Descriptor))
	}
	return i.cfg.Blobs.Stream(ctx, layer.Digest, layer.Size, i.source(layer.Descriptor))
}

// Tar is Stream, uncompressed: the layer's tar, of at most Config.Limit
// bytes. Closing it closes the stream, after reading what a tar reader left
// behind the archive's end.
func (i *Image) Tar(ctx context.Context, n int) (*Tar, error) {
	st, err := i.Stream(ctx, n)
	if err != nil {
		return nil, err
	}
	return openTar(st, i.cfg.Limit)
}

// source reads a blob of the image's repository.
func (i *Image) source(desc ocispec.Descriptor) blob.Source {
	return func(ctx context.Context, offset int64) (rc readCloser, err error) {
		return i.repo.Blob(ctx, desc, offset)
	}
}

// progress hands events on, one at a time.
type progress struct {
	mu     sync.Mutex
	report func(spec.Progress)
}

func (p *progress) send(e spec.Progress) {
	if p.report == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report(e)
}

func (p *progress) retrying(err error, _ time.Duration) {
	p.send(spec.Progress{Phase: spec.Fetching, Status: "retrying: " + err.Error()})
}
