package image

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/base/errs"
	"berth/image/catalog"
	"berth/image/manifest"
	"berth/image/pull"
	"berth/image/reference"
	"berth/node/snapshot"
	"berth/spec"
)

// Space is the images that one namespace of Config.Spaces names, as Kubernetes
// means it: an image is there as long as it has a name there, and goes with all
// of its names. Pulled by a tag it gets the name with the digest too, so that
// it stays when the tag moves on.
type Space struct {
	set  *Set
	name string
}

// Space returns one of Config.Spaces.
func (s *Set) Space(name string) *Space { return &Space{s, name} }

// Spaced is an image as a Space has it.
type Spaced struct {
	ID     string // digest of the configuration
	Config spec.ImageConfig
	Size   int64 // unpacked
	Pulled time.Time
	// Names are all of the space's, by name. Those with a digest come after
	// those with a tag.
	Names []catalog.Record
}

// Tags are the names with a tag.
func (i Spaced) Tags() []string {
	var tags []string
	for _, rec := range i.Names {
		if name, err := reference.Parse(rec.Name); err == nil && !name.Untagged() {
			tags = append(tags, rec.Name)
		}
	}
	return tags
}

// Digests are the names by digest: of each repository that the image has a name
// in, with what it stands for there.
func (i Spaced) Digests() []string {
	var all []string
	for _, rec := range i.Names {
		if name, err := reference.Parse(rec.Name); err == nil {
			all = append(all, name.WithDigest(rec.Target.Digest).String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Label is the value of a label on any of the names.
func (i Spaced) Label(key string) string {
	for _, rec := range i.Names {
		if value := rec.Labels[key]; value != "" {
			return value
		}
	}
	return ""
}

// List returns all images of the space, by ID.
func (sp *Space) List() []Spaced {
	s := sp.set
	s.mu.RLock()
	by := map[string][]string{}
	for name, id := range s.home(sp.name) {
		by[id] = append(by[id], name)
	}
	s.mu.RUnlock()
	var all []Spaced
	for id, names := range by {
		if rec := s.image(id); rec != nil {
			all = append(all, sp.show(rec, names))
		}
	}
	slices.SortFunc(all, func(a, b Spaced) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

func (sp *Space) show(rec *record, names []string) Spaced {
	s := sp.set
	image := Spaced{ID: rec.Image.ID, Config: rec.Image.Config, Size: s.sizeOf(s.noting.life, rec), Pulled: rec.Image.Pulled}
	for _, name := range names {
		if rec, err := s.namesIn(sp.name).Get(name); err == nil {
			image.Names = append(image.Names, rec)
		}
	}
	slices.SortFunc(image.Names, func(a, b catalog.Record) int {
		return cmp.Or(cmp.Compare(strings.Count(a.Name, "@"), strings.Count(b.Name, "@")), cmp.Compare(a.Name, b.Name))
	})
	return image
}

// Get returns the image called ref: a name, an ID or its first digits, or a
// name by digest. NotFound: the space has none; Conflict: ref is the beginning
// of several IDs; Invalid: ref can be none of these.
func (sp *Space) Get(ref string) (Spaced, error) {
	rec, names, err := sp.find(ref)
	if err != nil {
		return Spaced{}, err
	}
	return sp.show(rec, names), nil
}

func (sp *Space) find(ref string) (*record, []string, error) {
	rec, _, err := sp.set.resolveIn(ref, sp.name)
	if err != nil {
		return nil, nil, err
	}
	names := sp.namesOf(rec.Image.ID)
	if len(names) == 0 {
		return nil, nil, missing(ref)
	}
	return rec, names, nil
}

func (sp *Space) namesOf(id string) []string {
	sp.set.mu.RLock()
	defer sp.set.mu.RUnlock()
	var names []string
	for name, of := range sp.set.home(sp.name) {
		if of == id {
			names = append(names, name)
		}
	}
	return names
}

// Annotations are those of an image's manifest, which is read for it.
func (sp *Space) Annotations(ctx context.Context, ref string) (map[string]string, error) {
	rec, _, err := sp.find(ref)
	if err != nil {
		return nil, err
	}
	body, err := sp.set.Blobs.Read(ctx, rec.Manifest.Digest, manifest.Limit)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(rec.Manifest, body)
	return m.Annotations, err
}

// Chain is Set.Chain for an image of the space.
func (sp *Space) Chain(ctx context.Context, ref string) (snapshot.Key, error) {
	rec, _, err := sp.find(ref)
	if err != nil {
		return "", err
	}
	return sp.set.Chain(ctx, rec.Image.ID)
}

// SpacePull asks for an image.
type SpacePull struct {
	spec.PullRequest
	Labels map[string]string // for the names
	// Patience is how long nothing may come of it before it fails; 0: for ever.
	Patience time.Duration
}

// Pull is Set.Pull into the space. A reference with a tag and a digest is that
// of the digest. Timeout: nothing came for too long.
func (sp *Space) Pull(ctx context.Context, req SpacePull) (string, error) {
	s := sp.set
	name, err := reference.Parse(req.Reference)
	if err != nil {
		return "", err
	}
	if name.Digest() != "" {
		name = name.WithDigest(name.Digest())
		req.Reference = name.String()
	}
	ctx, progress, stop := s.watches.begin(ctx, req.Patience)
	image, err := s.pull(ctx, req.PullRequest, progress, func(from *pull.Image) naming {
		as := naming{space: sp.name, names: []string{name.String()}, labels: maps.Clone(req.Labels)}
		if !name.Untagged() {
			as.names = append(as.names, name.WithDigest(from.Target.Digest).String())
		}
		return as
	})
	if stalled := stop(); stalled && err != nil {
		return "", errs.New(errs.Timeout, "pull %s: nothing came for %s", name.Familiar(), req.Patience)
	}
	return image.ID, err
}

// Remove takes all names of an image from the space. The image itself goes too
// unless somebody else names it; while containers use it, it goes after them.
// NotFound: the space has none.
func (sp *Space) Remove(ctx context.Context, ref string) error {
	if err := sp.remove(ctx, ref); err != nil {
		return err
	}
	sp.set.collectSoon(ctx)
	return nil
}

func (sp *Space) remove(ctx context.Context, ref string) error {
	s := sp.set
	s.write.Lock()
	defer s.write.Unlock()
	rec, names, err := sp.find(ref)
	if err != nil {
		return err
	}
	id := rec.Image.ID
	var mine []named
	for _, name := range names {
		mine = append(mine, named{sp.name, name})
	}
	last := len(s.everyName(id)) == len(mine) && (rec.Given || rec.Passing)
	_, err = s.drop(ctx, rec, mine, last && len(s.usersOf(id)) == 0)
	return err
}
