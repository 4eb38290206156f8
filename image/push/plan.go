package push

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/manifest"
)

// plan lists what must be sent, before anything is.
func (j *job) plan(ctx context.Context, target ocispec.Descriptor, platform string) error {
	if platform != "" {
		chosen, err := j.choose(ctx, target, platform)
		if err != nil {
			return err
		}
		target = chosen
	}
	root, err := j.take(ctx, target, 0)
	if err != nil {
		return err
	}
	j.root = root
	return nil
}

// choose goes down the indexes to the manifest of a platform.
func (j *job) choose(ctx context.Context, desc ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	want, err := manifest.ParsePlatform(platform)
	if err != nil {
		return desc, err
	}
	for depth := 0; manifest.IsIndex(desc.MediaType); depth++ {
		if depth == manifest.DepthLimit {
			return desc, errs.New(errs.Invalid, "indexes lie more than %d deep in each other", manifest.DepthLimit)
		}
		body, err := j.cfg.Source.Read(ctx, desc.Digest, manifest.Limit)
		if err != nil {
			return desc, err
		}
		index, err := manifest.ParseIndex(desc.Digest, body)
		if err != nil {
			return desc, err
		}
		if desc, err = want.Choose(index.Manifests); err != nil {
			return desc, err
		}
	}
	return desc, nil
}

// take plans desc and all below it. What is not here has kind NotFound.
func (j *job) take(ctx context.Context, desc ocispec.Descriptor, depth int) (document, error) {
	if err := manifest.CheckType(desc.MediaType); err != nil {
		return document{}, err
	}
	body, err := j.cfg.Source.Read(ctx, desc.Digest, manifest.Limit)
	if err != nil {
		return document{}, err
	}
	if manifest.IsIndex(desc.MediaType) {
		return j.takeIndex(ctx, desc, body, depth)
	}
	return document{desc, body}, j.takeManifest(desc, body)
}

func (j *job) takeManifest(desc ocispec.Descriptor, body []byte) error {
	m, err := manifest.Parse(desc, body)
	if err != nil {
		return err
	}
	parts := append([]ocispec.Descriptor{m.Config}, m.Layers...)
	for _, b := range parts {
		if !j.cfg.Source.Has(b.Digest) {
			return errs.New(errs.NotFound, "blob %s of manifest %s is not here: pull the image again", b.Digest, desc.Digest)
		}
	}
	for _, b := range parts {
		if !j.planned[b.Digest] {
			j.planned[b.Digest] = true
			j.blobs = append(j.blobs, b)
		}
	}
	return nil
}

// takeIndex plans the children that are here. If that is not all, the index
// itself would refer to nothing, so less is sent in its place.
func (j *job) takeIndex(ctx context.Context, desc ocispec.Descriptor, body []byte, depth int) (document, error) {
	if depth == manifest.DepthLimit {
		return document{}, errs.New(errs.Invalid, "indexes lie more than %d deep in each other", manifest.DepthLimit)
	}
	index, err := manifest.ParseIndex(desc.Digest, body)
	if err != nil {
		return document{}, err
	}
	here := map[digest.Digest]document{}
	var some []ocispec.Descriptor
	for _, child := range index.Manifests {
		doc, err := j.take(ctx, child, depth+1)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return document{}, err
		}
		here[doc.desc.Digest] = doc
		kept := child
		kept.Digest, kept.Size, kept.MediaType = doc.desc.Digest, doc.desc.Size, doc.desc.MediaType
		some = append(some, kept)
	}
	switch {
	case len(some) == 0:
		return document{}, errs.New(errs.NotFound, "index %s: none of its images is here", desc.Digest)
	case len(some) == 1 && len(index.Manifests) > 1:
		return here[some[0].Digest], nil
	}
	for _, child := range some {
		j.manifests = append(j.manifests, here[child.Digest])
	}
	if len(some) == len(index.Manifests) && unchanged(some, index.Manifests) {
		return document{desc, body}, nil
	}
	index.Manifests = some
	smaller, err := json.Marshal(index)
	if err != nil {
		return document{}, err
	}
	return document{ocispec.Descriptor{MediaType: desc.MediaType, Digest: digest.FromBytes(smaller), Size: int64(len(smaller))}, smaller}, nil
}

func unchanged(a, b []ocispec.Descriptor) bool {
	for i := range a {
		if a[i].Digest != b[i].Digest {
			return false
		}
	}
	return true
}
