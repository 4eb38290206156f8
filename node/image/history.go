package image

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// parts are the blobs of an image.
func (r *record) parts() []ocispec.Descriptor {
	parts := []ocispec.Descriptor{r.Target, r.Manifest, r.Config}
	for _, l := range r.Layers {
		parts = append(parts, l.Descriptor)
	}
	return parts
}
