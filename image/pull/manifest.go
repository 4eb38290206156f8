package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/remote"
)

const (
	configLimit = 8 << 20
	layersLimit = 1000    // overlay and every other driver give up long before
	sizeLimit   = 1 << 44 // 16 TiB; a layer that claims more is nonsense
	depthLimit  = 3       // an index may hold indexes, but not for ever
)

// target resolves the name; a digest whose manifest is here needs nobody.
func (i *Image) target(ctx context.Context) (ocispec.Descriptor, error) {
	if d := i.Name.Digest(); d != "" {
		if b, err := i.cfg.Blobs.Read(ctx, d, remote.ManifestLimit); err == nil {
			var doc struct {
				MediaType string `json:"mediaType"`
			}
			if json.Unmarshal(b, &doc) == nil && doc.MediaType != "" {
				return ocispec.Descriptor{MediaType: doc.MediaType, Digest: d, Size: int64(len(b))}, nil
			}
		}
	}
	return i.repo.Resolve(ctx)
}

// descend goes from the target to manifest and configuration.
func (i *Image) descend(ctx context.Context, want Platform) error {
	desc := i.Target
	for range depthLimit {
		body, err := i.manifest(ctx, desc)
		if err != nil {
			return err
		}
		if !isIndex(desc.MediaType) {
			i.Manifest = desc
			return i.read(ctx, body, want)
		}
		var index ocispec.Index
		if err := json.Unmarshal(body, &index); err != nil {
			return errs.New(errs.Invalid, "index %s: %w", desc.Digest, err)
		}
		if desc, err = want.choose(index.Manifests); err != nil {
			return err
		}
	}
	return errs.New(errs.Invalid, "index %s: indexes lie more than %d deep in each other", i.Target.Digest, depthLimit)
}

// manifest returns a manifest or index, from the store if it is there.
func (i *Image) manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if !isIndex(desc.MediaType) && !isManifest(desc.MediaType) {
		return nil, unsupported(desc.MediaType)
	}
	if err := checkSize(desc, remote.ManifestLimit); err != nil {
		return nil, err
	}
	b, err := i.cfg.Blobs.Read(ctx, desc.Digest, remote.ManifestLimit)
	if err == nil || !errors.Is(err, errs.NotFound) {
		return b, err
	}
	if b, err = i.repo.Manifest(ctx, desc); err != nil {
		return nil, err
	}
	if desc.Digest.Algorithm() == digest.Canonical {
		_, err = i.cfg.Blobs.Put(ctx, b)
	} else {
		_, err = i.cfg.Blobs.Ingest(ctx, strings.NewReader(string(b)), desc.Digest, int64(len(b)))
	}
	return b, err
}

// read takes the manifest apart and fetches the configuration.
func (i *Image) read(ctx context.Context, body []byte, want Platform) error {
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return errs.New(errs.Invalid, "manifest %s: %w", i.Manifest.Digest, err)
	}
	switch {
	case m.MediaType != "" && m.MediaType != i.Manifest.MediaType:
		return errs.New(errs.Invalid, "manifest %s calls itself %s, but was announced as %s", i.Manifest.Digest, m.MediaType, i.Manifest.MediaType)
	case !isConfig(m.Config.MediaType):
		return errs.New(errs.Unsupported, "this is no container image, but %q", m.Config.MediaType)
	case len(m.Layers) > layersLimit:
		return errs.New(errs.Invalid, "the image has %d layers; up to %d are accepted", len(m.Layers), layersLimit)
	}
	if err := checkSize(m.Config, configLimit); err != nil {
		return err
	}
	i.ConfigDescriptor = m.Config
	if err := i.readConfig(ctx, want); err != nil {
		return err
	}
	return i.readLayers(m.Layers)
}

func (i *Image) readConfig(ctx context.Context, want Platform) error {
	d := i.ConfigDescriptor
	st, err := i.cfg.Blobs.Stream(ctx, d.Digest, d.Size, i.source(d))
	if err != nil {
		return fmt.Errorf("configuration %s: %w", d.Digest, err)
	}
	b, err := io.ReadAll(st)
	if err = errors.Join(err, st.Close()); err != nil {
		return fmt.Errorf("configuration %s: %w", d.Digest, err)
	}
	if err := json.Unmarshal(b, &i.Config); err != nil {
		return errs.New(errs.Invalid, "configuration %s: %w", d.Digest, err)
	}
	i.Platform = normal(i.Config.Platform)
	if !want.accepts(i.Platform) {
		return errs.New(errs.NotFound, "the image is for %s only, not for %s", format(i.Platform), want)
	}
	return nil
}

func (i *Image) readLayers(layers []ocispec.Descriptor) error {
	diffs := i.Config.RootFS.DiffIDs
	if len(diffs) != len(layers) {
		return errs.New(errs.Invalid, "the manifest has %d layers, the configuration %d", len(layers), len(diffs))
	}
	for n, l := range layers {
		if err := checkLayer(l); err != nil {
			return err
		}
		if err := checkSize(l, sizeLimit); err != nil {
			return err
		}
		if err := diffs[n].Validate(); err != nil {
			return errs.New(errs.Invalid, "diff ID %.80q: %w", diffs[n], err)
		}
		i.Layers = append(i.Layers, Layer{l, diffs[n]})
	}
	return nil
}

func isIndex(t string) bool { return t == ocispec.MediaTypeImageIndex || t == remote.DockerList }

func isManifest(t string) bool {
	return t == ocispec.MediaTypeImageManifest || t == remote.DockerManifest
}

func isConfig(t string) bool {
	return t == ocispec.MediaTypeImageConfig || t == "application/vnd.docker.container.image.v1+json"
}

func unsupported(t string) error {
	if strings.HasPrefix(t, "application/vnd.docker.distribution.manifest.v1+") {
		return errs.New(errs.Unsupported, "the image has docker's manifest schema 1, which is long out of use: push it again with a current tool")
	}
	return errs.New(errs.Unsupported, "media type %q is neither an image manifest nor an index", t)
}

// checkLayer lets through what can be unpacked: tars, plain or compressed.
func checkLayer(l ocispec.Descriptor) error {
	switch t := strings.ReplaceAll(l.MediaType, "nondistributable.", ""); {
	case strings.Contains(t, "foreign"):
		return errs.New(errs.Unsupported, "layer %s is foreign (%s): it must come from elsewhere, for Windows images; these cannot run here", l.Digest, l.MediaType)
	case t == ocispec.MediaTypeImageLayer, t == ocispec.MediaTypeImageLayerGzip, t == ocispec.MediaTypeImageLayerZstd,
		t == "application/vnd.docker.image.rootfs.diff.tar", t == "application/vnd.docker.image.rootfs.diff.tar.gzip", t == "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return nil
	}
	return errs.New(errs.Unsupported, "layer %s has the media type %q, which cannot be unpacked", l.Digest, l.MediaType)
}
