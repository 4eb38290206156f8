package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"berth/base/errs"
	"berth/base/span"
	"berth/image/blob"
	"berth/image/manifest"
	"berth/image/reference"
	"berth/node/snapshot"
	"berth/spec"
)

// Commit makes an image of what the Active snapshot changed on base, with
// config as changed by req.Changes. Without req.Reference it has no name.
// read, which may be nil, is called once all that changed has been read: the
// container may go on then. With req.Sync the layer is durable afterwards.
// Invalid: the reference or the changes; NotFound: no such snapshot, or base
// is gone.
func (s *Set) Commit(ctx context.Context, base spec.Image, active snapshot.Key, config spec.ImageConfig, req spec.CommitRequest, read func()) (spec.Image, error) {
	name, err := commitName(req.Reference)
	if err != nil {
		return spec.Image{}, err
	}
	config, err = applyChanges(config, req.Changes)
	if err != nil {
		return spec.Image{}, err
	}
	s.keeping.begin()
	defer s.endKeeping(ctx)
	if read == nil {
		read = func() {}
	}
	image, err := s.commit(ctx, base, active, config, req, name, read)
	if err != nil {
		return spec.Image{}, fmt.Errorf("commit: %w", err)
	}
	s.Notify("commit", image.ID, name)
	return image, nil
}

func commitName(ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	name, err := reference.Parse(ref)
	if err != nil {
		return "", err
	}
	if name.Digest() != "" {
		return "", errs.New(errs.Invalid, "commit to %s: a name with a digest cannot be given", ref)
	}
	return name.String(), nil
}

func (s *Set) commit(ctx context.Context, base spec.Image, active snapshot.Key, config spec.ImageConfig, req spec.CommitRequest, name string, read func()) (spec.Image, error) {
	below, err := s.find(base.ID)
	if err != nil {
		return spec.Image{}, err
	}
	doc, err := s.readDocument(ctx, below.Config)
	if err != nil {
		return spec.Image{}, err
	}
	top, err := s.commitLayer(ctx, below.Layers, active, read)
	if err != nil {
		return spec.Image{}, err
	}
	now := time.Now().UTC()
	doc.Created, doc.Author = &now, req.Author
	doc.Config.set(config)
	doc.RootFS.DiffIDs = append(doc.RootFS.DiffIDs, top.DiffID)
	doc.History = append(doc.History, ocispec.History{
		Created: &now, Author: req.Author, Comment: req.Message, CreatedBy: createdBy(config),
	})
	rec, err := s.writeImage(ctx, doc, append(slices.Clone(below.Layers), top))
	if err != nil {
		return spec.Image{}, err
	}
	var names []string
	if name != "" {
		names = []string{name}
	}
	image, err := s.take(ctx, taking{
		rec: rec, as: naming{names: names},
		unpacking: unpacking{layers: rec.Layers, open: s.fromAnywhere(rec.Layers, nil), report: func(spec.Progress) {}},
	})
	// A layer without a blob is nowhere else.
	if err == nil && (req.Sync || s.sheds(top)) {
		err = s.Snapshots.Sync(ctx)
	}
	return image, err
}

func createdBy(config spec.ImageConfig) string {
	return strings.Join(slices.Concat(config.Entrypoint, config.Command), " ")
}

// commitLayer writes the changes of active as a blob and unpacks them as the
// next layer, in one pass.
func (s *Set) commitLayer(ctx context.Context, below []layer, active snapshot.Key, read func()) (top layer, err error) {
	ctx, end := span.Start(ctx, "write layer", "snapshot", string(active))
	defer func() { end(err) }()
	w, err := s.blobOfCommit(ctx)
	if err != nil {
		return layer{}, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	hash, packed := sha256.New(), blob.Compress(w)
	var tarSize counter
	reader, writer := io.Pipe()
	group, gctx := errgroup.WithContext(ctx)
	var in snapshot.Ingest
	group.Go(func() (err error) {
		in, err = s.Snapshots.Ingest(gctx, reader)
		reader.CloseWithError(err) // so that the other end does not wait
		return err
	})
	group.Go(func() error {
		err := s.Snapshots.Diff(gctx, active, io.MultiWriter(packed, hash, writer, &tarSize))
		read()
		writer.CloseWithError(err)
		return errors.Join(err, packed.Close())
	})
	if err := group.Wait(); err != nil {
		if in != nil {
			err = errors.Join(err, in.Abort(context.WithoutCancel(ctx)))
		}
		return layer{}, err
	}
	info, err := w.Commit(ctx)
	if err != nil {
		return layer{}, errors.Join(err, in.Abort(context.WithoutCancel(ctx)))
	}
	top = layer{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: info.Digest, Size: info.Size},
		DiffID:     digest.NewDigest(digest.SHA256, hash), Made: true,
	}
	return top, s.place(ctx, in, int64(tarSize), append(slices.Clone(below), top))
}

// blobOfCommit takes the bytes of a committed layer's blob.
func (s *Set) blobOfCommit(ctx context.Context) (blobWriter, error) {
	if s.sheds(layer{Made: true}) {
		return &hashedAway{hash: sha256.New()}, nil
	}
	return s.Blobs.Writer(ctx, "", blob.UnknownSize)
}

type blobWriter interface {
	io.WriteCloser
	Commit(ctx context.Context) (blob.Info, error)
}

// hashedAway is a blob that is not kept; only its digest is wanted.
type hashedAway struct {
	hash hash.Hash
	size int64
}

func (h *hashedAway) Write(p []byte) (int, error) {
	h.size += int64(len(p))
	return h.hash.Write(p)
}

func (h *hashedAway) Commit(context.Context) (blob.Info, error) {
	return blob.Info{Digest: digest.NewDigest(digest.SHA256, h.hash), Size: h.size}, nil
}

func (*hashedAway) Close() error { return nil }

// place commits the topmost layer, which in holds.
func (s *Set) place(ctx context.Context, in snapshot.Ingest, tarSize int64, layers []layer) error {
	keys := chain(layers)
	var parent snapshot.Key
	if len(keys) > 1 {
		parent = keys[len(keys)-2]
	}
	_, err := in.Commit(ctx, keys[len(keys)-1], parent, layerLabels(in.Size(), tarSize))
	if err != nil && !errors.Is(err, errs.Exists) {
		return errors.Join(err, in.Abort(context.WithoutCancel(ctx)))
	}
	return nil
}

// writeImage stores the configuration and an OCI manifest of layers.
func (s *Set) writeImage(ctx context.Context, doc document, layers []layer) (*record, error) {
	rec := &record{Layers: layers}
	var err error
	if rec.Config, err = s.putJSON(ctx, ocispec.MediaTypeImageConfig, doc); err != nil {
		return nil, err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: rec.Config, Layers: []ocispec.Descriptor{},
	}
	for i, l := range layers {
		rec.Layers[i].MediaType = ociLayerType(l.MediaType)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: rec.Layers[i].MediaType, Digest: l.Digest, Size: l.Size})
	}
	if rec.Manifest, err = s.putJSON(ctx, m.MediaType, m); err != nil {
		return nil, err
	}
	rec.Target = rec.Manifest
	rec.describe(doc)
	return rec, nil
}

func (s *Set) putJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := s.Blobs.Put(ctx, body)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}, err
}

// ociLayerType is OCI's name for docker's media types: a manifest should not
// mix the two.
func ociLayerType(t string) string {
	switch t {
	case manifest.DockerLayer:
		return ocispec.MediaTypeImageLayer
	case manifest.DockerLayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	case manifest.DockerLayerZstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return t
}
