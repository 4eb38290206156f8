package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/blob"
	"berth/image/reference"
)

// Policy says which compressed layers stay on disk once they are unpacked.
// Manifests and configurations always do.
type Policy string

// The policies. Whatever the policy, a layer that no registry has and that
// could not be made again is kept.
const (
	// Keep keeps all.
	Keep Policy = "keep"
	// UntilPushed keeps those that are in no registry yet: of images that were
	// committed or loaded here.
	UntilPushed Policy = "until-pushed"
	// Drop keeps none that can be fetched or made again.
	Drop Policy = "drop"
)

// ParsePolicy reads a policy; "" is Keep.
func ParsePolicy(text string) (Policy, error) {
	switch p := Policy(text); p {
	case "":
		return Keep, nil
	case Keep, UntilPushed, Drop:
		return p, nil
	}
	return "", errs.New(errs.Invalid, "blobs %q: expected %s, %s or %s", text, Keep, UntilPushed, Drop)
}

const (
	placeBucket = "node.image.place"
	// placesLimit bounds the places remembered of one blob.
	placesLimit = 4
)

// place is a repository of a registry that has a blob.
type place struct {
	Repository string `json:"repository"`
	Insecure   bool   `json:"insecure,omitempty"`
}

func (p place) name() (reference.Name, error) { return reference.Parse(p.Repository) }

// placesOf lists the repositories that a blob came from or went to, the latest
// first.
func (s *Set) placesOf(d digest.Digest) []place {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.places[d]
}

// sourcesOf lists the repositories that parts of an image are in.
func (s *Set) sourcesOf(rec *record) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []string
	for _, part := range rec.parts() {
		for _, p := range s.places[part.Digest] {
			if !slices.Contains(all, p.Repository) {
				all = append(all, p.Repository)
			}
		}
	}
	slices.Sort(all)
	return all
}

// settlePlaces puts the place that blobs are at first in their lists, and
// returns the lists that this changes.
func (s *Set) settlePlaces(blobs []digest.Digest, at place) map[digest.Digest][]place {
	s.mu.RLock()
	defer s.mu.RUnlock()
	changed := map[digest.Digest][]place{}
	for _, d := range blobs {
		old := s.places[d]
		if len(old) > 0 && old[0] == at {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(old), func(p place) bool { return p.Repository == at.Repository })
		changed[d] = append([]place{at}, others[:min(len(others), placesLimit-1)]...)
	}
	return changed
}

func putPlaces(tx *kv.Tx, changed map[digest.Digest][]place) error {
	for d, list := range changed {
		if err := kv.PutJSON(tx, placeBucket, d.String(), list); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) takePlaces(changed map[digest.Digest][]place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.places, changed)
	s.listed.changed++
}

// remember notes that a repository has blobs.
func (s *Set) remember(ctx context.Context, blobs []digest.Digest, at place) error {
	s.write.Lock()
	defer s.write.Unlock()
	changed := s.settlePlaces(blobs, at)
	if len(changed) == 0 {
		return nil
	}
	if err := s.DB.Update(ctx, func(tx *kv.Tx) error { return putPlaces(tx, changed) }); err != nil {
		return fmt.Errorf("remember where blobs are: %w", err)
	}
	s.takePlaces(changed)
	return nil
}

// forgetPlaces drops what is known of blobs that nothing refers to.
func (s *Set) forgetPlaces(used map[digest.Digest]bool) {
	s.mu.Lock()
	var gone []string
	for d := range s.places {
		if !used[d] {
			gone = append(gone, d.String())
			delete(s.places, d)
		}
	}
	if len(gone) > 0 {
		s.listed.changed++
	}
	s.mu.Unlock()
	if len(gone) == 0 {
		return
	}
	s.DB.Later(func(tx *kv.Tx) error {
		for _, d := range gone {
			if err := tx.Delete(placeBucket, d); err != nil {
				return err
			}
		}
		return nil
	})
}

// shed says whether the policy wants the blob of l gone.
func (s *Set) shed(l layer) bool {
	switch {
	case s.Policy == Keep:
		return false
	case len(s.placesOf(l.Digest)) > 0:
		return true
	}
	return s.sheds(l)
}

// sheds says whether l needs no blob even where no registry has it.
func (s *Set) sheds(l layer) bool {
	_, exact := s.Snapshots.(Exact)
	return s.Policy == Drop && exact && l.ours()
}

// replaceable leaves out blobs that no registry has and that what is here does
// not give again, whatever it should.
func (s *Set) replaceable(ctx context.Context, blobs []digest.Digest) []digest.Digest {
	layers := s.layersByDigest()
	return slices.DeleteFunc(blobs, func(d digest.Digest) bool {
		l, ok := layers[d]
		if !ok || len(s.placesOf(d)) > 0 {
			return false
		}
		err := s.tryBlob(ctx, l)
		if err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "a compressed layer stays, for it could not be made again", "layer", d, "err", err)
		}
		return err != nil
	})
}

// tryBlob makes the blob of a layer as makeBlob does, and keeps nothing of it.
func (s *Set) tryBlob(ctx context.Context, l placed) error {
	away := &hashedAway{hash: sha256.New()}
	var packed io.WriteCloser = nopCloser{away}
	if l.Digest != l.DiffID {
		packed = blob.Compress(away)
	}
	if err := errors.Join(s.writeTar(ctx, l, packed), packed.Close()); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, away.hash); got != l.Digest {
		return errs.New(errs.Invalid, "it would be %s", got)
	}
	return nil
}

// ours says whether the blob can be made again from the layer's tar: it is
// that tar, or this program has compressed it.
func (l layer) ours() bool { return l.Made || l.Digest == l.DiffID }

// layersByDigest finds the layers that images are made of by the digest of
// their blob, and the keys of their snapshots.
func (s *Set) layersByDigest() map[digest.Digest]placed {
	found := map[digest.Digest]placed{}
	for _, rec := range s.all() {
		keys := chain(rec.Layers)
		for n, l := range rec.Layers {
			found[l.Digest] = placed{layer: l, key: keys[n], image: rec}
		}
	}
	return found
}

// whereFrom lists the repositories to ask for a blob: those known to have it,
// and those that an image with it is named after.
func (s *Set) whereFrom(d digest.Digest) []place {
	places := slices.Clone(s.placesOf(d))
	for _, name := range s.elsewhere(d) {
		if !slices.ContainsFunc(places, func(p place) bool { return p.Repository == name.Repository() }) {
			places = append(places, place{Repository: name.Repository()})
		}
	}
	return places
}

func repositories(places []place) string {
	names := make([]string, len(places))
	for i, p := range places {
		names[i] = p.Repository
		if name, err := p.name(); err == nil {
			names[i] = name.FamiliarRepository()
		}
	}
	return strings.Join(names, ", ")
}

// digests lists the digests of descriptors.
func digests(all []ocispec.Descriptor) []digest.Digest {
	list := make([]digest.Digest, len(all))
	for i, d := range all {
		list[i] = d.Digest
	}
	return list
}
