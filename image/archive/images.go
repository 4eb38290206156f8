package archive

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/manifest"
	"berth/image/reference"
)

// dockerImage is an entry of docker's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// images finds the images and makes sure that they are complete.
func (l *loader) images(ctx context.Context) ([]Image, error) {
	index, hasIndex := l.docs[ocispec.ImageIndexFile]
	list, hasList := l.docs[dockerFile]
	if !hasIndex && !hasList {
		return nil, errs.New(errs.Invalid, "it is neither an OCI layout (no %s) nor from docker save (no %s)", ocispec.ImageIndexFile, dockerFile)
	}
	var images []Image
	configs := map[digest.Digest]int{} // configuration → which image
	if hasIndex {
		var err error
		if images, err = l.layout(ctx, index, configs); err != nil {
			return nil, err
		}
	}
	if hasList {
		var entries []dockerImage
		if err := json.Unmarshal(list, &entries); err != nil {
			return nil, errs.New(errs.Invalid, "%s: %w", dockerFile, err)
		}
		for _, e := range entries {
			var err error
			if images, err = l.dockerImage(ctx, e, images, configs); err != nil {
				return nil, err
			}
		}
	}
	if len(images) == 0 {
		return nil, errs.New(errs.Invalid, "it holds no image")
	}
	return images, nil
}

// layout reads the images of an OCI layout.
func (l *loader) layout(ctx context.Context, body []byte, configs map[digest.Digest]int) ([]Image, error) {
	index, err := manifest.ParseIndex(ocispec.ImageIndexFile, body)
	if err != nil {
		return nil, err
	}
	var images []Image
	for _, d := range index.Manifests {
		name, err := nameOf(d)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(images, func(i Image) bool { return i.Target.Digest == d.Digest })
		if at < 0 {
			at = len(images)
			if err := l.need(ctx, d, at, configs, 0); err != nil {
				return nil, err
			}
			images = append(images, Image{Target: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}})
		}
		images[at].addName(name)
	}
	return images, nil
}

func (i *Image) addName(n reference.Name) {
	if !n.IsZero() && !slices.Contains(i.Names, n) {
		i.Names = append(i.Names, n)
	}
}

// nameOf reads the annotations of a layout's image. A reference that is a
// bare tag names nothing.
func nameOf(d ocispec.Descriptor) (reference.Name, error) {
	if full := d.Annotations[containerdName]; full != "" {
		return reference.Parse(full)
	}
	if ref := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(ref, "/:") {
		return reference.Parse(ref)
	}
	return reference.Name{}, nil
}

// errMissing marks a manifest that the archive does not have, which inside
// an index is no fault.
var errMissing = errors.New("missing")

// need marks desc and all below it as needed.
func (l *loader) need(ctx context.Context, desc ocispec.Descriptor, image int, configs map[digest.Digest]int, depth int) error {
	if err := manifest.CheckType(desc.MediaType); err != nil {
		return err
	}
	if err := manifest.CheckDescriptor(desc, manifest.Limit); err != nil {
		return err
	}
	p := l.part(desc.Digest)
	if p == nil {
		return errs.New(errs.Invalid, "manifest %s is missing from the archive%w", desc.Digest, quiet{errMissing})
	}
	body, err := l.read(ctx, p, manifest.Limit)
	if err != nil {
		return err
	}
	if manifest.IsIndex(desc.MediaType) {
		err = l.needIndex(ctx, desc, body, image, configs, depth)
	} else {
		err = l.needManifest(desc, body, image, configs)
	}
	if err == nil {
		l.needed[desc.Digest] = true
	}
	return err
}

// quiet is in the chain, but not in the text.
type quiet struct{ error }

func (quiet) Error() string   { return "" }
func (q quiet) Unwrap() error { return q.error }

func (l *loader) needIndex(ctx context.Context, desc ocispec.Descriptor, body []byte, image int, configs map[digest.Digest]int, depth int) error {
	if depth == manifest.DepthLimit {
		return errs.New(errs.Invalid, "indexes lie more than %d deep in each other", manifest.DepthLimit)
	}
	index, err := manifest.ParseIndex(desc.Digest, body)
	if err != nil {
		return err
	}
	found := 0
	for _, child := range index.Manifests {
		switch err := l.need(ctx, child, image, configs, depth+1); {
		case errors.Is(err, errMissing):
		case err != nil:
			return err
		default:
			found++
		}
	}
	if found == 0 {
		return errs.New(errs.Invalid, "of index %s no image is in the archive", desc.Digest)
	}
	return nil
}

func (l *loader) needManifest(desc ocispec.Descriptor, body []byte, image int, configs map[digest.Digest]int) error {
	m, err := manifest.Parse(desc, body)
	if err != nil {
		return err
	}
	for _, b := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := manifest.CheckDescriptor(b, manifest.SizeLimit); err != nil {
			return err
		}
		p := l.part(b.Digest)
		if p == nil {
			return errs.New(errs.Invalid, "blob %s, which manifest %s needs, is missing from the archive", b.Digest, desc.Digest)
		}
		if p.size != b.Size {
			return errs.New(errs.Invalid, "blob %s has %d bytes, manifest %s says %d", b.Digest, p.size, desc.Digest, b.Size)
		}
		l.needed[b.Digest] = true
	}
	configs[m.Config.Digest] = image
	return nil
}

// dockerImage adds an image of manifest.json, or the names it has there to
// the image that the layout gave.
func (l *loader) dockerImage(ctx context.Context, e dockerImage, images []Image, configs map[digest.Digest]int) ([]Image, error) {
	config, err := l.find(e.Config)
	if err != nil {
		return nil, err
	}
	at, known := configs[config.digest]
	if !known {
		target, err := l.build(ctx, config, e.Layers)
		if err != nil {
			return nil, err
		}
		at = len(images)
		configs[config.digest] = at
		images = append(images, Image{Target: target})
	}
	for _, tag := range e.RepoTags {
		name, err := reference.Parse(tag)
		if err != nil {
			return nil, err
		}
		taken := func(i Image) bool { return slices.Contains(i.Names, name) }
		if !slices.ContainsFunc(images, taken) { // the layout knows better which index it stands for
			images[at].addName(name)
		}
	}
	return images, nil
}

// build makes the manifest that docker's older archives lack.
func (l *loader) build(ctx context.Context, config *part, layers []string) (ocispec.Descriptor, error) {
	none := ocispec.Descriptor{}
	body, err := l.read(ctx, config, manifest.ConfigLimit)
	if err != nil {
		return none, err
	}
	var image ocispec.Image
	if err := json.Unmarshal(body, &image); err != nil {
		return none, errs.New(errs.Invalid, "configuration %s: %w", config.digest, err)
	}
	if len(image.RootFS.DiffIDs) != len(layers) || len(layers) > manifest.LayersLimit {
		return none, errs.New(errs.Invalid, "%s lists %d layers, the configuration %d", dockerFile, len(layers), len(image.RootFS.DiffIDs))
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.DockerManifest,
		Config: ocispec.Descriptor{MediaType: manifest.DockerConfig, Digest: config.digest, Size: config.size}, Layers: []ocispec.Descriptor{},
	}
	l.needed[config.digest] = true
	for n, name := range layers {
		p, err := l.find(name)
		if err != nil {
			return none, err
		}
		desc := ocispec.Descriptor{Digest: p.digest, Size: p.size}
		if desc.MediaType, err = l.layerType(ctx, p); err != nil {
			return none, err
		}
		if desc.MediaType == manifest.DockerLayer && p.digest.Algorithm() == image.RootFS.DiffIDs[n].Algorithm() && p.digest != image.RootFS.DiffIDs[n] {
			return none, errs.New(errs.Invalid, "layer %.200q does not match its digest: wanted %s, got %s", name, image.RootFS.DiffIDs[n], p.digest)
		}
		m.Layers = append(m.Layers, desc)
		l.needed[p.digest] = true
	}
	b, err := json.Marshal(m)
	if err != nil {
		return none, err
	}
	l.built = append(l.built, b)
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, nil
}

// layerType tells by its first bytes how a layer is compressed.
func (l *loader) layerType(ctx context.Context, p *part) (string, error) {
	head := make([]byte, 4)
	var err error
	if p.writer != nil {
		_, err = p.writer.ReadAt(head, 0)
	} else {
		f, openErr := l.store.Reader(ctx, p.digest)
		if openErr != nil {
			return "", openErr
		}
		defer f.Close()
		_, err = f.ReadAt(head, 0)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	switch blob.Detect(head) {
	case blob.Gzip:
		return manifest.DockerLayerGzip, nil
	case blob.Zstd:
		return manifest.DockerLayerZstd, nil
	}
	return manifest.DockerLayer, nil
}
