package image

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/image/blob"
	"berth/node/snapshot"
	"berth/spec"
)

// Usage is what images, and the store of their layers, take of the disk.
type Usage struct {
	Images, Blobs spec.DiskShare
	Store         spec.StoreUsage
	List          []spec.ImageUsage
	// Estimated says that the store gave no totals: Store adds up the layers
	// one by one, as if they shared nothing.
	Estimated bool
}

// DiskUsage counts what images take. Layers and blobs count once, however many
// images have them; reclaimable is what removing the images that no container
// uses would give back.
func (s *Set) DiskUsage(ctx context.Context) (Usage, error) {
	var u Usage
	all := s.all()
	slices.SortFunc(all, func(a, b *record) int {
		return cmp.Or(b.Image.Created.Compare(a.Image.Created), cmp.Compare(a.Image.ID, b.Image.ID))
	})
	each, sides := map[string][]snapshot.Key{}, map[string][]snapshot.Key{}
	for _, rec := range all {
		image := s.show(rec)
		u.List = append(u.List, spec.ImageUsage{ID: image.ID, Names: image.Names, Created: image.Created, Containers: image.Containers})
		u.Images.Total++
		side := unusedSide
		if image.Containers > 0 {
			side = usedSide
			u.Images.Active++
		}
		if keys := chain(rec.Layers); len(keys) > 0 {
			top := keys[len(keys)-1]
			each[image.ID], sides[side] = []snapshot.Key{top}, append(sides[side], top)
		}
	}
	if err := s.countLayers(ctx, &u, each, sides); err != nil {
		return u, fmt.Errorf("disk usage of images: %w", err)
	}
	if err := s.countBlobs(ctx, &u, all); err != nil {
		return u, fmt.Errorf("disk usage of images: %w", err)
	}
	return u, nil
}

// The two sides that images stand on.
const (
	usedSide   = "used"
	unusedSide = "unused"
)

func (s *Set) countLayers(ctx context.Context, u *Usage, each, sides map[string][]snapshot.Key) error {
	accountant, ok := s.Snapshots.(Accountant)
	if !ok {
		accountant, u.Estimated = adder{s.Snapshots}, true
	}
	shares, totals, err := accountant.Shares(ctx, each)
	if err != nil {
		return err
	}
	for i := range u.List {
		share := shares[u.List[i].ID]
		u.List[i].Shared, u.List[i].Own = share.Shared, share.Own
	}
	bySide, _, err := accountant.Shares(ctx, sides)
	if err != nil {
		return err
	}
	u.Store = spec.StoreUsage(totals)
	u.Images.Size = totals.Objects + totals.Metadata + totals.Layers
	u.Images.Reclaimable = bySide[unusedSide].Own
	return nil
}

func (s *Set) countBlobs(ctx context.Context, u *Usage, all []*record) error {
	owners := map[digest.Digest][]string{} // the images that have a blob
	for _, rec := range all {
		for _, part := range rec.parts() {
			if ids := owners[part.Digest]; !slices.Contains(ids, rec.Image.ID) {
				owners[part.Digest] = append(ids, rec.Image.ID)
			}
		}
	}
	shares := map[string]snapshot.Share{}
	var err error
	u.Blobs.Size, err = s.Blobs.Loose()
	if err != nil {
		return err
	}
	u.Blobs.Reclaimable = u.Blobs.Size
	err = s.Blobs.Walk(ctx, func(info blob.Info) error {
		ids := owners[info.Digest]
		for _, id := range ids {
			share := shares[id]
			if len(ids) == 1 {
				share.Own += info.Disk
			} else {
				share.Shared += info.Disk
			}
			shares[id] = share
		}
		u.Blobs.Total++
		u.Blobs.Size += info.Disk
		inUse := slices.ContainsFunc(ids, func(id string) bool { return len(s.usersOf(id)) > 0 })
		if inUse || s.Content != nil && s.Content.Held(info.Digest) {
			u.Blobs.Active++
		} else {
			u.Blobs.Reclaimable += info.Disk
		}
		return nil
	})
	for i := range u.List {
		one, share := &u.List[i], shares[u.List[i].ID]
		one.Own += share.Own
		one.Shared += share.Shared
		one.Blobs = share.Own + share.Shared
	}
	return err
}

// adder accounts for a store that does not by itself, by adding up layers.
type adder struct{ snapshot.Store }

// Shares implements Accountant.
func (a adder) Shares(ctx context.Context, groups map[string][]snapshot.Key) (map[string]snapshot.Share, snapshot.Totals, error) {
	var totals snapshot.Totals
	parents, sizes := map[snapshot.Key]snapshot.Key{}, map[snapshot.Key]int64{}
	err := a.Walk(ctx, func(info snapshot.Info) error {
		usage, err := a.Usage(ctx, info.Key)
		if isMissing(err) {
			return nil // removed meanwhile
		}
		if info.Kind == snapshot.KindCommitted {
			parents[info.Key], sizes[info.Key] = info.Parent, usage.Size
			totals.Layers += usage.Size
			totals.Inodes += usage.Inodes
		} else {
			totals.Uppers += usage.Size
			totals.UpperInodes += usage.Inodes
		}
		return err
	})
	needed := map[snapshot.Key]map[string]bool{} // by which groups
	for group, tops := range groups {
		for _, key := range tops {
			for ; key != "" && !needed[key][group]; key = parents[key] {
				if needed[key] == nil {
					needed[key] = map[string]bool{}
				}
				needed[key][group] = true
			}
		}
	}
	shares := map[string]snapshot.Share{}
	for key, by := range needed {
		for group := range by {
			share := shares[group]
			if len(by) == 1 {
				share.Own += sizes[key]
			} else {
				share.Shared += sizes[key]
			}
			shares[group] = share
		}
	}
	return shares, totals, err
}
