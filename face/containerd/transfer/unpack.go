package transfer

import (
	"context"
	"encoding/json"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/face/containerd/wire"
	nodeimage "berth/node/image"
	"berth/spec"
)

// unpacking is the images of one transfer on their way to snapshots.
type unpacking struct {
	*Service
	wanted []wanted
	source nodeimage.Source
	watch  *watch

	mu     sync.Mutex
	queued map[digest.Digest][][]ocispec.Descriptor // layers, by the configuration they wait for
}

// wanted is what images are to be unpacked, and for which snapshotter.
type wanted struct {
	platform    platforms.Matcher
	snapshotter string
}

func (s *Service) newUnpacking(to *image.Store, w *watch) *unpacking {
	u := &unpacking{Service: s, watch: w, queued: map[digest.Digest][][]ocispec.Descriptor{}}
	for _, c := range to.UnpackPlatforms() {
		snapshotter := c.Snapshotter
		if snapshotter == "" {
			snapshotter = s.Snapshotters[0]
		}
		if !slices.Contains(s.Snapshotters, snapshotter) {
			s.Log.Warn("an image is not unpacked for a snapshotter that is not there", "snapshotter", snapshotter)
			continue
		}
		u.wanted = append(u.wanted, wanted{platforms.Only(c.Platform), snapshotter})
	}
	return u
}

// handler keeps the layers of each manifest back until its configuration says
// what they are.
func (u *unpacking) handler(h images.Handler) images.Handler {
	if len(u.wanted) == 0 {
		return h
	}
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		below, err := h.Handle(ctx, desc)
		if err != nil {
			return below, err
		}
		switch {
		case images.IsManifestType(desc.MediaType):
			return u.queue(below), nil
		case images.IsConfigType(desc.MediaType):
			return below, u.unpackAll(ctx, h, desc)
		}
		return below, nil
	})
}

// queue takes the layers out of what a manifest consists of.
func (u *unpacking) queue(below []ocispec.Descriptor) (rest []ocispec.Descriptor) {
	var layers []ocispec.Descriptor
	var config digest.Digest
	for _, desc := range below {
		if images.IsLayerType(desc.MediaType) {
			layers = append(layers, desc)
			continue
		}
		if images.IsConfigType(desc.MediaType) {
			config = desc.Digest
		}
		rest = append(rest, desc)
	}
	if config == "" || len(layers) == 0 {
		return below
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queued[config] = append(u.queued[config], layers)
	return rest
}

func (u *unpacking) unpackAll(ctx context.Context, h images.Handler, config ocispec.Descriptor) error {
	u.mu.Lock()
	waiting := u.queued[config.Digest]
	delete(u.queued, config.Digest)
	u.mu.Unlock()
	for _, layers := range waiting {
		if err := u.unpack(ctx, h, config, layers); err != nil {
			return err
		}
	}
	return nil
}

// unpack brings the layers of one image, and unpacks them if that is wanted.
func (u *unpacking) unpack(ctx context.Context, h images.Handler, config ocispec.Descriptor, layers []ocispec.Descriptor) error {
	parts, snapshotter, err := u.parts(ctx, config, layers)
	if err != nil || snapshotter == "" {
		if err == nil {
			err = images.Dispatch(ctx, h, nil, layers...)
		}
		return err
	}
	byDigest := map[string]ocispec.Descriptor{}
	for _, desc := range layers {
		byDigest[desc.Digest.String()] = desc
		u.watch.tracker.Add(desc)
	}
	top, release, err := u.Layers.Unpack(ctx, parts, u.source, func(p spec.Progress) { u.watch.layer(ctx, byDigest[p.Item], p) })
	if err != nil {
		return err
	}
	defer release()
	if err := images.Dispatch(ctx, h, nil, layers...); err != nil { // the blobs are here; the namespace has yet to know
		return err
	}
	for _, p := range parts {
		if err := u.label(ctx, p.Digest, labels.LabelUncompressed, p.DiffID.String()); err != nil {
			return err
		}
	}
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return err
	}
	if _, err := u.Snapshots.Layer(ctx, namespace, snapshotter, string(top)); err != nil {
		return err
	}
	return u.label(ctx, config.Digest, "containerd.io/gc.ref.snapshot."+snapshotter, string(top))
}

// label sets a label of a blob.
func (u *unpacking) label(ctx context.Context, d digest.Digest, name, value string) error {
	_, err := u.Content.Update(ctx, content.Info{Digest: d, Labels: map[string]string{name: value}}, "labels."+name)
	return err
}

// parts reads from its configuration what the layers of an image are, and says
// for which snapshotter it is to be unpacked, if it is.
func (u *unpacking) parts(ctx context.Context, config ocispec.Descriptor, layers []ocispec.Descriptor) ([]nodeimage.Part, string, error) {
	body, err := content.ReadBlob(ctx, u.Content, config)
	if err != nil {
		return nil, "", err
	}
	var doc struct {
		ocispec.Platform
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, "", errs.New(errs.Invalid, "configuration %s: %w", config.Digest, err)
	}
	found := slices.IndexFunc(u.wanted, func(w wanted) bool { return w.platform.Match(platforms.Normalize(doc.Platform)) })
	if found < 0 || doc.RootFS.Type != "" && doc.RootFS.Type != "layers" {
		return nil, "", nil
	}
	if len(doc.RootFS.DiffIDs) != len(layers) {
		return nil, "", errs.New(errs.Invalid, "configuration %s: %d layers, but the manifest has %d", config.Digest, len(doc.RootFS.DiffIDs), len(layers))
	}
	parts := make([]nodeimage.Part, len(layers))
	for n, desc := range layers {
		parts[n] = nodeimage.Part{Descriptor: desc, DiffID: doc.RootFS.DiffIDs[n]}
	}
	return parts, u.wanted[found].snapshotter, nil
}
