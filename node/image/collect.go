package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/manifest"
	"berth/node/snapshot"
)

// keeping counts the operations that bring blobs and snapshots in before an
// image names them. Nothing is collected meanwhile.
type keeping struct {
	mu      sync.Mutex
	running int
	wanted  bool // a collection waits for the last to end
}

func (k *keeping) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running++
}

// end reports whether a collection that was put off is due.
func (k *keeping) end() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running--
	due := k.running == 0 && k.wanted
	if due {
		k.wanted = false
	}
	return due
}

// exclude runs fn while nothing is brought in; it puts it off otherwise.
func (k *keeping) exclude(fn func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running > 0 {
		k.wanted = true
		return nil
	}
	return fn()
}

// shedLater has the blobs that the policy wants gone collected, once nothing
// is on its way. The caller has begun to keep.
func (s *Set) shedLater() {
	if s.Policy == Keep {
		return
	}
	s.keeping.mu.Lock()
	defer s.keeping.mu.Unlock()
	s.keeping.wanted = true
}

func (s *Set) endKeeping(ctx context.Context) {
	if s.keeping.end() {
		s.collectSoon(ctx)
	}
}

// collectSoon has somebody else collect, or does it where there is nobody.
func (s *Set) collectSoon(ctx context.Context) {
	if s.Freed != nil {
		s.Freed()
		return
	}
	if _, err := s.Collect(context.WithoutCancel(ctx)); err != nil {
		s.Log.WarnContext(ctx, "not all unused layers were collected", "error", err)
	}
}

// Collect deletes blobs and layers that no image names and no container stands
// on, and blobs that the policy wants gone, and returns the bytes given back.
// While images are on their way in it does nothing; the last of them to arrive
// then sees to it.
func (s *Set) Collect(ctx context.Context) (int64, error) {
	nameless := s.dropNameless(ctx)
	freed, shed, err := s.collect(ctx, func(digest.Digest) bool { return false })
	err = errors.Join(nameless, err)
	if len(shed) > 0 && err == nil {
		// The layers are then all that is left of them here. Nobody has to wait
		// for the disk meanwhile.
		if err = s.Snapshots.Sync(ctx); err == nil {
			shed = s.replaceable(ctx, shed)
			var more int64
			more, _, err = s.collect(ctx, func(d digest.Digest) bool { return slices.Contains(shed, d) })
			freed += more
		}
	}
	if err != nil {
		return freed, fmt.Errorf("collect images: %w", err)
	}
	return freed, nil
}

// collect deletes what is unused, and what the policy wants gone of which safe
// says that its layer is durable. It returns the others of those.
func (s *Set) collect(ctx context.Context, safe func(digest.Digest) bool) (freed int64, shed []digest.Digest, err error) {
	err = s.keeping.exclude(func() error {
		layers, layersErr := s.collectLayers(ctx)
		blobs, waiting, blobsErr := s.collectBlobs(ctx, safe)
		freed, shed = layers+blobs, waiting
		return errors.Join(layersErr, blobsErr)
	})
	return freed, shed, err
}

// collectLayers removes from the top down; what something stands on stays.
func (s *Set) collectLayers(ctx context.Context) (int64, error) {
	used := map[snapshot.Key]bool{}
	for _, rec := range s.all() {
		for _, key := range slices.Concat(chain(rec.Layers), rec.Early) {
			used[key] = true
		}
	}
	unused := map[snapshot.Key]snapshot.Info{}
	isParent := map[snapshot.Key]bool{}
	err := s.Snapshots.Walk(ctx, func(info snapshot.Info) error {
		isParent[info.Parent] = true
		if info.Kind == snapshot.KindCommitted && info.Labels[layerLabel] != "" && !used[info.Key] {
			unused[info.Key] = info
		}
		return nil
	})
	var freed int64
	for key := range unused {
		if isParent[key] {
			continue // comes after its children
		}
		for ok := true; ok; _, ok = unused[key] {
			n, removeErr := s.letGoLayer(ctx, key)
			if errors.Is(removeErr, errHeld) {
				break
			}
			if errors.Is(removeErr, errs.Conflict) {
				break // has other children still
			}
			err = errors.Join(err, removeErr)
			freed += n
			key = unused[key].Parent
		}
	}
	return freed, err
}

func (s *Set) removeLayer(ctx context.Context, key snapshot.Key) (int64, error) {
	usage, err := s.Snapshots.Usage(ctx, key)
	if err == nil {
		err = s.Snapshots.Remove(ctx, key)
	}
	if err == nil {
		s.forgetLazily(key)
	}
	switch {
	case isMissing(err):
		return 0, nil
	case err != nil:
		return 0, err
	}
	return usage.Size, nil
}

func (s *Set) collectBlobs(ctx context.Context, safe func(digest.Digest) bool) (freed int64, waiting []digest.Digest, err error) {
	used, err := s.usedBlobs(ctx)
	if err != nil {
		return 0, nil, err
	}
	s.forgetPlaces(used)
	layers := s.layersByDigest()
	var unused []blob.Info
	err = s.Blobs.Walk(ctx, func(info blob.Info) error {
		l, isLayer := layers[info.Digest]
		shed := isLayer && s.unpacked(ctx, l.key) && s.shed(l.layer)
		switch {
		case !used[info.Digest], shed && safe(info.Digest):
			unused = append(unused, info)
		case shed:
			waiting = append(waiting, info.Digest)
		}
		return nil
	})
	for _, info := range unused {
		dropped, dropErr := s.dropBlob(ctx, info.Digest)
		if !isMissing(dropErr) {
			err = errors.Join(err, dropErr)
		}
		if dropped {
			freed += info.Size
			s.links.forget(info.Digest)
		}
	}
	return freed, waiting, err
}

// dropBlob deletes a blob, unless a namespace holds it.
func (s *Set) dropBlob(ctx context.Context, d digest.Digest) (bool, error) {
	if s.Content != nil {
		return s.Content.Drop(ctx, d)
	}
	err := s.Blobs.Delete(ctx, d)
	return err == nil, err
}

func (s *Set) unpacked(ctx context.Context, key snapshot.Key) bool {
	_, err := s.Snapshots.Stat(ctx, key)
	return err == nil
}

// usedBlobs is all that can be reached from the node's own images and names.
// What an image consists of its record knows too, should its manifest be lost.
// Those that clients gave keep no more than they need here: the rest belongs to
// the clients.
func (s *Set) usedBlobs(ctx context.Context) (map[digest.Digest]bool, error) {
	used := map[digest.Digest]bool{}
	var roots []ocispec.Descriptor
	given := map[string]bool{}
	for _, rec := range s.all() {
		if !rec.Given {
			roots = append(roots, rec.parts()...)
			continue
		}
		given[rec.Image.ID] = true
		for _, desc := range s.neededOf(ctx, rec) {
			used[desc.Digest] = true
		}
	}
	for _, space := range s.homes() {
		for _, name := range s.namesIn(space).List() {
			if name.Image != "" && !given[name.Image] {
				roots = append(roots, name.Target)
			}
		}
	}
	seen := map[digest.Digest]bool{}
	for len(roots) > 0 {
		desc := roots[len(roots)-1]
		roots = roots[:len(roots)-1]
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest], used[desc.Digest] = true, true
		below, err := s.below(ctx, desc)
		if err != nil {
			return nil, err
		}
		roots = append(roots, below...)
	}
	return used, nil
}

// neededOf lists the documents of an image, and the blobs of layers that are
// not unpacked.
func (s *Set) neededOf(ctx context.Context, rec *record) []ocispec.Descriptor {
	needed := []ocispec.Descriptor{rec.Target, rec.Manifest, rec.Config}
	for n, key := range chain(rec.Layers) {
		if !s.unpacked(ctx, key) {
			needed = append(needed, rec.Layers[n].Descriptor)
		}
	}
	return needed
}

// links remembers what manifests and indexes refer to, for they never change.
type links struct {
	mu       sync.Mutex
	byDigest map[digest.Digest][]ocispec.Descriptor
}

func (l *links) forget(d digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byDigest, d)
}

// below lists what a manifest or an index refers to. Of an index usually only
// some is here.
func (s *Set) below(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if !manifest.IsIndex(desc.MediaType) && !manifest.IsManifest(desc.MediaType) {
		return nil, nil
	}
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	if below, ok := s.links.byDigest[desc.Digest]; ok {
		return below, nil
	}
	body, err := s.Blobs.Read(ctx, desc.Digest, manifest.Limit)
	if isMissing(err) {
		return nil, nil // another platform's
	}
	if err != nil {
		return nil, err
	}
	below, err := refersTo(desc, body)
	if err != nil {
		return nil, err
	}
	if s.links.byDigest == nil {
		s.links.byDigest = map[digest.Digest][]ocispec.Descriptor{}
	}
	s.links.byDigest[desc.Digest] = below
	return below, nil
}

func refersTo(desc ocispec.Descriptor, body []byte) ([]ocispec.Descriptor, error) {
	if manifest.IsIndex(desc.MediaType) {
		index, err := manifest.ParseIndex(desc.Digest, body)
		return index.Manifests, err
	}
	m, err := manifest.Parse(desc, body)
	return slices.Concat([]ocispec.Descriptor{m.Config}, m.Layers), err
}
