package image

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/manifest"
	"berth/node/content"
	"berth/spec"
)

// The labels that containerd's clients give the parts of images that they
// pull.
const (
	labelRef          = "containerd.io/gc.ref.content."
	labelSource       = "containerd.io/distribution.source."
	labelUncompressed = "containerd.io/uncompressed"
)

// EachPart implements content.Natives.
func (s *Set) EachPart(ctx context.Context, namespace string, fn func(content.Info)) error {
	parts, err := s.parts(ctx, namespace)
	for _, part := range parts {
		fn(part)
	}
	return err
}

// Part implements content.Natives.
func (s *Set) Part(ctx context.Context, namespace string, d digest.Digest) (content.Info, error) {
	parts, err := s.parts(ctx, namespace)
	if err != nil {
		return content.Info{}, err
	}
	part, ok := parts[d]
	if !ok {
		return part, errs.New(errs.NotFound, "no image has blob %s", d)
	}
	return part, nil
}

// parts are the blobs of the images that this node made or pulled, as a
// namespace sees them. They are listed anew when an image has come or gone.
func (s *Set) parts(ctx context.Context, namespace string) (map[digest.Digest]content.Info, error) {
	s.mu.RLock()
	was := s.listed.in[namespace]
	parts, as := was.parts, s.listed.changed
	stale := parts == nil || was.as != as
	s.mu.RUnlock()
	if !stale {
		return parts, nil
	}
	parts = map[digest.Digest]content.Info{}
	for _, rec := range s.all() {
		if rec.Given || !s.isOf(rec, namespace) {
			continue // a given one's blobs are its namespace's
		}
		if err := s.addParts(ctx, parts, rec); err != nil {
			return nil, fmt.Errorf("list parts of image %s: %w", rec.Image.ID, err)
		}
	}
	s.mu.Lock()
	if s.listed.in == nil {
		s.listed.in = map[string]seen{}
	}
	s.listed.in[namespace] = seen{parts, as}
	s.mu.Unlock()
	return parts, nil
}

// isOf says whether an image is one of a namespace's. All that nobody named
// elsewhere are the default one's.
func (s *Set) isOf(rec *record, namespace string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, id := range s.home(namespace) {
		if id == rec.Image.ID {
			return true
		}
	}
	return namespace == spec.DefaultNamespace && !rec.Passing
}

// listing remembers parts by namespace. changed counts what makes them
// outdated.
type listing struct {
	in      map[string]seen
	changed uint64
}

// seen are the parts in a namespace, as they were at a count of changes.
type seen struct {
	parts map[digest.Digest]content.Info
	as    uint64
}

func (s *Set) addParts(ctx context.Context, parts map[digest.Digest]content.Info, rec *record) error {
	add := func(desc ocispec.Descriptor, labels map[string]string) {
		if _, ok := parts[desc.Digest]; ok {
			return
		}
		if labels == nil {
			labels = map[string]string{}
		}
		for _, p := range s.placesOf(desc.Digest) {
			domain, path, _ := strings.Cut(p.Repository, "/")
			host := (&url.URL{Host: domain}).Hostname() // without the port
			if was := labels[labelSource+host]; was != "" {
				path = was + "," + path
			}
			labels[labelSource+host] = path
		}
		parts[desc.Digest] = content.Info{Digest: desc.Digest, Size: desc.Size, Labels: labels, Created: rec.Image.Pulled, Updated: rec.Image.Pulled}
	}
	for _, desc := range []ocispec.Descriptor{rec.Target, rec.Manifest} {
		labels, err := s.refLabels(ctx, desc)
		if err != nil {
			return err
		}
		add(desc, labels)
	}
	add(rec.Config, nil)
	for _, l := range rec.Layers {
		add(l.Descriptor, map[string]string{labelUncompressed: l.DiffID.String()})
	}
	return nil
}

// refLabels are those of a document to what it refers to.
func (s *Set) refLabels(ctx context.Context, desc ocispec.Descriptor) (map[string]string, error) {
	below, err := s.below(ctx, desc)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{}
	for n, child := range below {
		switch {
		case manifest.IsIndex(desc.MediaType):
			labels[labelRef+"m."+strconv.Itoa(n)] = child.Digest.String()
		case n == 0:
			labels[labelRef+"config"] = child.Digest.String()
		default:
			labels[labelRef+"l."+strconv.Itoa(n-1)] = child.Digest.String()
		}
	}
	return labels, nil
}

// Bring implements content.Natives: a compressed layer that the policy let go
// is had again. It goes with the next collection, but what is open stays.
func (s *Set) Bring(ctx context.Context, d digest.Digest) (*os.File, error) {
	s.keeping.begin()
	defer s.endKeeping(ctx)
	if !s.Blobs.Has(d) {
		if err := s.bring(ctx, d); err != nil {
			return nil, err
		}
		s.shedLater()
	}
	return s.Blobs.Reader(ctx, d)
}

func (s *Set) bring(ctx context.Context, d digest.Digest) (err error) {
	var part content.Info
	for _, namespace := range s.homes() {
		if part, err = s.Part(ctx, namespace, d); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	r, err := s.bits(nil).Open(ctx, d, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if s.Blobs.Has(d) {
		return nil // made again
	}
	_, err = s.Blobs.Ingest(ctx, r, d, part.Size)
	return err
}
