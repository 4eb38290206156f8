package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/archive"
	"berth/image/manifest"
	"berth/image/reference"
	"berth/node/snapshot"
	"berth/spec"
)

// Load takes in the images of an archive: an OCI layout or one of docker's,
// plain or compressed. Of an image for many platforms the one for this machine
// is unpacked, or else what there is. Invalid: the archive is none, or damaged.
func (s *Set) Load(ctx context.Context, r io.Reader, progress func(spec.Progress)) ([]spec.Image, error) {
	s.keeping.begin()
	defer s.endKeeping(ctx)
	report := serial(progress)
	found, err := archive.Load(ctx, r, s.Blobs, archive.LoadOptions{Report: report})
	if err != nil {
		return nil, err
	}
	images := []spec.Image{}
	for _, one := range found {
		image, err := s.loadOne(ctx, one, report)
		if err != nil {
			return images, fmt.Errorf("load image %s: %w", one.Target.Digest, err)
		}
		images = append(images, image)
		s.shedLater()
		s.Notify("load", image.ID, strings.Join(image.Names, " "))
	}
	return images, nil
}

func (s *Set) loadOne(ctx context.Context, one archive.Image, report func(spec.Progress)) (spec.Image, error) {
	here, err := s.manifestHere(ctx, one.Target)
	if err != nil {
		return spec.Image{}, err
	}
	rec := &record{Target: one.Target, Manifest: here}
	if err := s.readManifest(ctx, rec); err != nil {
		return spec.Image{}, err
	}
	var names []string
	for _, name := range one.Names {
		names = append(names, name.String())
	}
	return s.take(ctx, taking{
		rec: rec, as: naming{names: names},
		unpacking: unpacking{layers: rec.Layers, open: s.fromAnywhere(rec.Layers, nil), report: report},
	})
}

// manifestHere goes down from an index to a manifest that is here.
func (s *Set) manifestHere(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	want, err := manifest.ParsePlatform("")
	if err != nil {
		return target, err
	}
	for range manifest.DepthLimit {
		if !manifest.IsIndex(target.MediaType) {
			return target, nil
		}
		all, err := s.below(ctx, target)
		if err != nil {
			return target, err
		}
		here := slices.DeleteFunc(slices.Clone(all), func(d ocispec.Descriptor) bool { return !s.Blobs.Has(d.Digest) })
		if len(here) == 0 {
			return target, errs.New(errs.NotFound, "index %s: none of its images is here", target.Digest)
		}
		if chosen, err := want.Choose(here); err == nil {
			target = chosen
		} else {
			target = here[0] // for another platform: it can still be pushed and saved
		}
	}
	return target, errs.New(errs.Invalid, "indexes lie more than %d deep in each other", manifest.DepthLimit)
}

// readManifest fills in a record whose manifest and configuration are here.
func (s *Set) readManifest(ctx context.Context, rec *record) error {
	body, err := s.Blobs.Read(ctx, rec.Manifest.Digest, manifest.Limit)
	if err != nil {
		return err
	}
	m, err := manifest.Parse(rec.Manifest, body)
	if err != nil {
		return err
	}
	rec.Config = m.Config
	for _, desc := range m.Layers {
		if err := manifest.CheckLayer(desc); err != nil {
			return err
		}
		rec.Layers = append(rec.Layers, layer{Descriptor: desc})
	}
	doc, err := s.readDocument(ctx, rec.Config)
	if err != nil {
		return err
	}
	if len(doc.RootFS.DiffIDs) != len(rec.Layers) {
		return errs.New(errs.Invalid, "the manifest has %d layers, the configuration %d", len(rec.Layers), len(doc.RootFS.DiffIDs))
	}
	for n, diffID := range doc.RootFS.DiffIDs {
		if err := diffID.Validate(); err != nil {
			return errs.New(errs.Invalid, "diff ID %.80q: %w", diffID, err)
		}
		rec.Layers[n].DiffID = diffID
	}
	rec.describe(doc)
	return nil
}

// Save writes images as an archive, in a format of package image/archive;
// docker-archive where format is "". Blobs go as they came; those that are not
// here any more are had again as for a push. A docker-archive, which needs no
// compressed layers, has such an image's layers as plain tars, so that it takes
// no registry. NotFound: no such image; Invalid: no such format.
func (s *Set) Save(ctx context.Context, refs []string, format string, w io.Writer) error {
	if len(refs) == 0 {
		return errs.New(errs.Invalid, "save: which image?")
	}
	s.keeping.begin()
	defer s.endKeeping(ctx)
	defer s.shedLater()
	parts := s.bits(nil)
	var images []archive.Image
	for _, ref := range refs {
		one, err := s.toSave(ctx, ref, format, parts)
		if err != nil {
			return fmt.Errorf("save: %w", err)
		}
		images = add(images, one)
	}
	return archive.Save(ctx, parts, images, format, w)
}

func (s *Set) toSave(ctx context.Context, ref, format string, parts *bits) (one archive.Image, err error) {
	rec, name, err := s.resolve(ref)
	if err != nil {
		return one, err
	}
	if err := s.Whole(ctx, rec.Image.ID); err != nil {
		return one, err
	}
	one = archive.Image{Target: rec.Manifest, Manifest: rec.Manifest}
	if name.name != "" {
		named, nameErr := s.namesIn(name.space).Get(name.name)
		parsed, parseErr := reference.Parse(name.name)
		if err := errors.Join(nameErr, parseErr); err != nil {
			return one, err
		}
		one.Target, one.Names = named.Target, []reference.Name{parsed}
	}
	if (format == archive.Docker || format == "") && s.needsPlain(ctx, rec) {
		one.Manifest, err = parts.addPlain(ctx, rec)
		one.Target = one.Manifest
	}
	return one, err
}

// needsPlain says whether a layer's blob is not here, and all tars are.
func (s *Set) needsPlain(ctx context.Context, rec *record) bool {
	if _, exact := s.Snapshots.(Exact); !exact || !slices.ContainsFunc(rec.Layers, func(l layer) bool { return !s.Blobs.Has(l.Digest) }) {
		return false
	}
	return !slices.ContainsFunc(chain(rec.Layers), func(key snapshot.Key) bool {
		info, err := s.Snapshots.Stat(ctx, key)
		return err != nil || info.Labels[snapshot.Missing] != "" // files are still on their way
	})
}

// addPlain adds a manifest of the image's layers as plain tars, and these.
func (b *bits) addPlain(ctx context.Context, rec *record) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: rec.Config.Digest, Size: rec.Config.Size},
		Layers: []ocispec.Descriptor{},
	}
	for n, key := range chain(rec.Layers) {
		l := placed{layer: rec.Layers[n], key: key, image: rec}
		size, err := b.set.tarSize(ctx, l)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		b.plain[l.DiffID] = l
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: size})
	}
	body, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.FromBytes(body)
	b.extra[d] = body
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(body))}, nil
}

// tarSize is the length of a layer's tar. Layers of old have no label of it.
func (s *Set) tarSize(ctx context.Context, l placed) (int64, error) {
	info, err := s.Snapshots.Stat(ctx, l.key)
	if err != nil {
		return 0, err
	}
	if size, err := strconv.ParseInt(info.Labels[tarLabel], 10, 64); err == nil {
		return size, nil
	}
	var counted counter
	if err := s.writeTar(ctx, l, &counted); err != nil {
		return 0, err
	}
	return int64(counted), s.Snapshots.SetLabels(ctx, l.key, map[string]string{tarLabel: strconv.FormatInt(int64(counted), 10)})
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// add puts images with several names into one entry.
func add(images []archive.Image, one archive.Image) []archive.Image {
	for i := range images {
		if images[i].Target.Digest == one.Target.Digest {
			images[i].Names = append(images[i].Names, one.Names...)
			return images
		}
	}
	return append(images, one)
}
