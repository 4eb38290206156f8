package image

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/blob"
	"berth/node/snapshot"
	"berth/spec"
)

// History lists the steps that made the image, newest first. NotFound,
// Conflict: see Get.
func (s *Set) History(ctx context.Context, ref string) ([]spec.HistoryEntry, error) {
	rec, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	doc, err := s.readDocument(ctx, rec.Config)
	if err != nil {
		return nil, fmt.Errorf("history of %s: %w", ref, err)
	}
	sizes := s.layerSizes(ctx, rec)
	entries := []spec.HistoryEntry{}
	n := 0
	for _, h := range doc.History {
		e := spec.HistoryEntry{CreatedBy: h.CreatedBy, Comment: h.Comment, Empty: h.EmptyLayer}
		if h.Created != nil {
			e.Created = h.Created.UTC()
		}
		if !h.EmptyLayer && n < len(rec.Layers) {
			e.DiffID, e.Size = rec.Layers[n].DiffID.String(), sizes[n]
			n++
		}
		entries = append(entries, e)
	}
	for ; n < len(rec.Layers); n++ { // layers that the builder wrote nothing about
		entries = append(entries, spec.HistoryEntry{DiffID: rec.Layers[n].DiffID.String(), Size: sizes[n]})
	}
	slices.Reverse(entries)
	return entries, nil
}

func (s *Set) layerSizes(ctx context.Context, rec *record) []int64 {
	sizes := make([]int64, len(rec.Layers))
	for i, key := range chain(rec.Layers) {
		if info, err := s.Snapshots.Stat(ctx, key); err == nil {
			sizes[i], _ = strconv.ParseInt(info.Labels[layerLabel], 10, 64)
		}
	}
	return sizes
}

// DiskUsage counts what images take: unpacked layers, each once however many
// images have it, and blobs. Reclaimable is what removing the images that no
// container uses would give back.
func (s *Set) DiskUsage(ctx context.Context) (images, blobs spec.DiskShare, err error) {
	layers := map[snapshot.Key]bool{} // to whether a container uses it
	parts := map[digest.Digest]bool{}
	for _, rec := range s.all() {
		used := len(s.usersOf(rec.Image.ID)) > 0
		images.Total++
		if used {
			images.Active++
		}
		for _, key := range chain(rec.Layers) {
			layers[key] = layers[key] || used
		}
		for _, desc := range rec.parts() {
			parts[desc.Digest] = parts[desc.Digest] || used
		}
	}
	for key, used := range layers {
		usage, err := s.Snapshots.Usage(ctx, key)
		if isMissing(err) {
			continue // lost, and not unpacked again yet
		}
		if err != nil {
			return images, blobs, fmt.Errorf("disk usage of images: %w", err)
		}
		images.Size += usage.Size
		if !used {
			images.Reclaimable += usage.Size
		}
	}
	err = s.Blobs.Walk(ctx, func(info blob.Info) error {
		blobs.Total++
		blobs.Size += info.Size
		if parts[info.Digest] {
			blobs.Active++
		} else {
			blobs.Reclaimable += info.Size
		}
		return nil
	})
	return images, blobs, err
}

// parts are the blobs of an image.
func (r *record) parts() []ocispec.Descriptor {
	parts := []ocispec.Descriptor{r.Target, r.Manifest, r.Config}
	for _, l := range r.Layers {
		parts = append(parts, l.Descriptor)
	}
	return parts
}
