package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/manifest"
)

// target resolves the name; a digest whose manifest is here needs nobody.
func (i *Image) target(ctx context.Context) (ocispec.Descriptor, error) {
	if d := i.Name.Digest(); d != "" {
		if b, err := i.cfg.Blobs.Read(ctx, d, manifest.Limit); err == nil {
			if t := manifest.MediaType(b); t != "" {
				return ocispec.Descriptor{MediaType: t, Digest: d, Size: int64(len(b))}, nil
			}
		}
	}
	return i.repo.Resolve(ctx)
}

// descend goes from the target to manifest and configuration.
func (i *Image) descend(ctx context.Context, want manifest.Platform) error {
	desc := i.Target
	for range manifest.DepthLimit {
		body, err := i.manifest(ctx, desc)
		if err != nil {
			return err
		}
		if !manifest.IsIndex(desc.MediaType) {
			i.Manifest = desc
			return i.read(ctx, body, want)
		}
		index, err := manifest.ParseIndex(desc.Digest, body)
		if err != nil {
			return err
		}
		if desc, err = want.Choose(index.Manifests); err != nil {
			return err
		}
	}
	return errs.New(errs.Invalid, "index %s: indexes lie more than %d deep in each other", i.Target.Digest, manifest.DepthLimit)
}

// manifest returns a manifest or index, from the store if it is there.
func (i *Image) manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := manifest.CheckType(desc.MediaType); err != nil {
		return nil, err
	}
	if err := manifest.CheckDescriptor(desc, manifest.Limit); err != nil {
		return nil, err
	}
	b, err := i.cfg.Blobs.Read(ctx, desc.Digest, manifest.Limit)
	if err == nil || !errors.Is(err, errs.NotFound) {
		return b, err
	}
	if b, err = i.repo.Manifest(ctx, desc); err != nil {
		return nil, err
	}
	_, err = i.cfg.Blobs.Ingest(ctx, bytes.NewReader(b), desc.Digest, int64(len(b)))
	return b, err
}

// read takes the manifest apart and fetches the configuration.
func (i *Image) read(ctx context.Context, body []byte, want manifest.Platform) error {
	m, err := manifest.Parse(i.Manifest, body)
	if err != nil {
		return err
	}
	if !manifest.IsConfig(m.Config.MediaType) {
		return errs.New(errs.Unsupported, "this is no container image, but %q", m.Config.MediaType)
	}
	i.ConfigDescriptor = m.Config
	if err := i.readConfig(ctx, want); err != nil {
		return err
	}
	return i.readLayers(m.Layers)
}

func (i *Image) readConfig(ctx context.Context, want manifest.Platform) error {
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
	i.Platform = manifest.Normal(i.Config.Platform)
	if !want.Accepts(i.Platform) {
		return errs.New(errs.NotFound, "the image is for %s only, not for %s", manifest.Format(i.Platform), want)
	}
	return nil
}

func (i *Image) readLayers(layers []ocispec.Descriptor) error {
	diffs := i.Config.RootFS.DiffIDs
	if len(diffs) != len(layers) {
		return errs.New(errs.Invalid, "the manifest has %d layers, the configuration %d", len(layers), len(diffs))
	}
	for n, l := range layers {
		if err := manifest.CheckLayer(l); err != nil {
			return err
		}
		if err := diffs[n].Validate(); err != nil {
			return errs.New(errs.Invalid, "diff ID %.80q: %w", diffs[n], err)
		}
		i.Layers = append(i.Layers, Layer{l, diffs[n]})
	}
	return nil
}
