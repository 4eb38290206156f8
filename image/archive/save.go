package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/manifest"
)

// The formats.
const (
	// Docker is an OCI layout with docker's manifest.json, which docker load
	// of any version reads.
	Docker = "docker-archive"
	// OCI is the layout alone.
	OCI = "oci-archive"
)

// Source is where the parts of images are; blob.Store is one.
type Source interface {
	// Read returns a whole manifest or index. NotFound: it is not here.
	Read(ctx context.Context, d digest.Digest, limit int64) ([]byte, error)
	// Has says whether a blob is here, or whether Open knows where to get it.
	Has(d digest.Digest) bool
	// Open opens a blob; offset is always 0.
	Open(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error)
}

// Save writes images to w; the same images always give the same bytes. Blobs
// go as they are, so that loading gives the same digests. Of an index what
// is here is written.
func Save(ctx context.Context, source Source, images []Image, format string, w io.Writer) error {
	if format == "" {
		format = Docker
	}
	if format != Docker && format != OCI {
		return errs.New(errs.Invalid, "format %q: use %s or %s", format, Docker, OCI)
	}
	s := &saver{source: source, tar: tar.NewWriter(w), blobs: map[digest.Digest]int64{}}
	docs, err := s.documents(ctx, images, format)
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if err := s.write(ctx, docs); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

// saver is one Save.
type saver struct {
	source Source
	tar    *tar.Writer
	blobs  map[digest.Digest]int64 // to their sizes
}

// document is a file of the archive that is not a blob.
type document struct {
	name  string
	value any
}

// documents describes the images, and on the way finds the blobs.
func (s *saver) documents(ctx context.Context, images []Image, format string) ([]document, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	list := []dockerImage{}
	for _, i := range images {
		if err := s.gather(ctx, i.Target, 0); err != nil {
			return nil, err
		}
		index.Manifests = append(index.Manifests, named(i)...)
		if format == Docker {
			e, err := s.dockerEntry(ctx, i)
			if err != nil {
				return nil, err
			}
			list = append(list, e)
		}
	}
	docs := []document{
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
		{ocispec.ImageIndexFile, index},
	}
	if format == Docker {
		docs = append(docs, document{dockerFile, list})
	}
	return docs, nil
}

// named gives one entry for each name.
func named(i Image) []ocispec.Descriptor {
	plain := ocispec.Descriptor{MediaType: i.Target.MediaType, Digest: i.Target.Digest, Size: i.Target.Size}
	if len(i.Names) == 0 {
		return []ocispec.Descriptor{plain}
	}
	var all []ocispec.Descriptor
	for _, n := range i.Names {
		d := plain
		d.Annotations = map[string]string{containerdName: n.String()}
		if n.Tag() != "" {
			d.Annotations[ocispec.AnnotationRefName] = n.Tag()
		}
		all = append(all, d)
	}
	return all
}

func (s *saver) dockerEntry(ctx context.Context, i Image) (dockerImage, error) {
	desc := i.Manifest
	if desc.Digest == "" {
		desc = i.Target
	}
	body, err := s.source.Read(ctx, desc.Digest, manifest.Limit)
	if err != nil {
		return dockerImage{}, err
	}
	if manifest.IsIndex(desc.MediaType) {
		return dockerImage{}, errs.New(errs.Invalid, "for the format %s an index needs one manifest to show", Docker)
	}
	m, err := manifest.Parse(desc, body)
	if err != nil {
		return dockerImage{}, err
	}
	e := dockerImage{Config: blobPath(m.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	for _, n := range i.Names {
		if !n.Untagged() {
			e.RepoTags = append(e.RepoTags, n.FamiliarRepository()+":"+n.Tag())
		}
	}
	for _, l := range m.Layers {
		e.Layers = append(e.Layers, blobPath(l.Digest))
	}
	return e, nil
}

// gather finds the blobs below desc. A child that an index has and we have
// not is passed over; a manifest without all of its layers is an error.
func (s *saver) gather(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if err := manifest.CheckType(desc.MediaType); err != nil {
		return err
	}
	body, err := s.source.Read(ctx, desc.Digest, manifest.Limit)
	if err != nil {
		return err
	}
	s.blobs[desc.Digest] = int64(len(body))
	if !manifest.IsIndex(desc.MediaType) {
		return s.gatherManifest(desc, body)
	}
	if depth == manifest.DepthLimit {
		return errs.New(errs.Invalid, "indexes lie more than %d deep in each other", manifest.DepthLimit)
	}
	index, err := manifest.ParseIndex(desc.Digest, body)
	if err != nil {
		return err
	}
	found := false
	for _, child := range index.Manifests {
		if !s.source.Has(child.Digest) {
			continue
		}
		switch err := s.gather(ctx, child, depth+1); {
		case errors.Is(err, errs.NotFound): // its manifest is here, its layers are not
			delete(s.blobs, child.Digest)
		case err != nil:
			return err
		default:
			found = true
		}
	}
	if !found {
		return errs.New(errs.NotFound, "index %s: none of its images is here", desc.Digest)
	}
	return nil
}

func (s *saver) gatherManifest(desc ocispec.Descriptor, body []byte) error {
	m, err := manifest.Parse(desc, body)
	if err != nil {
		return err
	}
	parts := append([]ocispec.Descriptor{m.Config}, m.Layers...)
	for _, b := range parts {
		if !s.source.Has(b.Digest) {
			return errs.New(errs.NotFound, "blob %s of manifest %s is not here: pull the image again", b.Digest, desc.Digest)
		}
	}
	for _, b := range parts {
		s.blobs[b.Digest] = b.Size
	}
	return nil
}

func (s *saver) write(ctx context.Context, docs []document) error {
	for _, d := range docs {
		b, err := json.Marshal(d.value)
		if err != nil {
			return err
		}
		if err := s.header(d.name, int64(len(b))); err != nil {
			return err
		}
		if _, err := s.tar.Write(b); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(s.blobs)) { // and so by path
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.blob(ctx, d); err != nil {
			return err
		}
	}
	return s.tar.Close()
}

func (s *saver) blob(ctx context.Context, d digest.Digest) (err error) {
	r, err := s.source.Open(ctx, d, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := s.header(blobPath(d), s.blobs[d]); err != nil {
		return err
	}
	n, err := io.Copy(s.tar, r)
	if err == nil && n < s.blobs[d] {
		err = errs.New(errs.Invalid, "blob %s has %d bytes instead of %d", d, n, s.blobs[d])
	}
	return err
}

func (s *saver) header(name string, size int64) error {
	return s.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	})
}

func blobPath(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + strings.Replace(d.String(), ":", "/", 1)
}
