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
)

// The labels that containerd's clients give the parts of images that they
// pull.
const (
	labelRef          = "containerd.io/gc.ref.content."
	labelSource       = "containerd.io/distribution.source."
	labelUncompressed = "containerd.io/uncompressed"
)

// EachPart implements content.Natives.
func (s *Set) EachPart(ctx context.Context, fn func(content.Info)) error {
	parts, err := s.parts(ctx)
	for _, part := range parts {
		fn(part)
	}
	return err
}

// Part implements content.Natives.
func (s *Set) Part(ctx context.Context, d digest.Digest) (content.Info, error) {
	parts, err := s.parts(ctx)
	if err != nil {
		return content.Info{}, err
	}
	part, ok := parts[d]
	if !ok {
		return part, errs.New(errs.NotFound, "no image has blob %s", d)
	}
	return part, nil
}

// parts are the blobs of the images that this node made or pulled, as their
// namespace sees them. They are listed anew when an image has come or gone.
func (s *Set) parts(ctx context.Context) (map[digest.Digest]content.Info, error) {
	s.mu.RLock()
	parts, as := s.listed.parts, s.listed.as
	stale := parts == nil || as != s.listed.changed
	as = s.listed.changed
	s.mu.RUnlock()
	if !stale {
		return parts, nil
	}
	parts = map[digest.Digest]content.Info{}
	for _, rec := range s.all() {
		if rec.Given {
			continue // its blobs are its namespace's
		}
		if err := s.addParts(ctx, parts, rec); err != nil {
			return nil, fmt.Errorf("list parts of image %s: %w", rec.Image.ID, err)
		}
	}
	s.mu.Lock()
	s.listed.parts, s.listed.as = parts, as
	s.mu.Unlock()
	return parts, nil
}

// listing remembers parts. changed counts what makes them outdated.
type listing struct {
	parts       map[digest.Digest]content.Info
	as, changed uint64
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
	part, err := s.Part(ctx, d)
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
