package image

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/blob"
	"berth/image/catalog"
	"berth/image/manifest"
)

// A client of containerd's protocol brings the parts of an image as content,
// in whatever order, and gives it a name; it may unpack it by itself, or never.
// Its blobs belong to its namespace, not to the image: the image only keeps its
// documents, and those layers that are not unpacked. And where such an image
// has lost its names it goes, as it does with containerd.

// found is what a target turns out to be on this node.
type found struct {
	image *record       // nil: none yet
	lacks digest.Digest // what has to come first; "" where it will never be one
}

// given says which image of this node a target is. That it is none is no
// error: it may be for another platform, or no image at all.
func (s *Set) given(ctx context.Context, target ocispec.Descriptor) (found, error) {
	want, err := manifest.ParsePlatform("")
	if err != nil {
		return found{}, err
	}
	here, lacks, err := s.forPlatform(ctx, target, want)
	if err != nil || lacks != "" || here.Digest == "" {
		return found{lacks: lacks}, err
	}
	rec := &record{Target: target, Manifest: here, Given: true}
	err = s.readManifest(ctx, rec)
	if isMissing(err) && rec.Config.Digest != "" && !s.Blobs.Has(rec.Config.Digest) {
		return found{lacks: rec.Config.Digest}, nil
	}
	if notAnImage(err) || err == nil && !want.Accepts(rec.platform) {
		return found{}, nil
	}
	if err != nil {
		return found{}, err
	}
	if known := s.image(rec.Image.ID); known != nil {
		return found{image: known}, nil
	}
	for _, l := range rec.Layers {
		rec.About += s.unpacksTo(l)
	}
	return found{image: rec}, nil
}

// notAnImage: the documents say something, but not what an image says.
func notAnImage(err error) bool {
	return errors.Is(err, errs.Invalid) || errors.Is(err, errs.Unsupported) || isMissing(err)
}

// forPlatform goes down from an index to the manifest for a platform. It
// returns none where there is none, or the document that is not here yet.
func (s *Set) forPlatform(ctx context.Context, target ocispec.Descriptor, want manifest.Platform) (here ocispec.Descriptor, lacks digest.Digest, err error) {
	for range manifest.DepthLimit {
		index := manifest.IsIndex(target.MediaType)
		switch {
		case !index && !manifest.IsManifest(target.MediaType):
			return here, "", nil
		case !s.Blobs.Has(target.Digest):
			return here, target.Digest, nil
		case !index:
			return target, "", nil
		}
		all, err := s.below(ctx, target)
		if err == nil {
			target, err = want.Choose(all)
		}
		if notAnImage(err) {
			return here, "", nil
		}
		if err != nil {
			return here, "", err
		}
	}
	return here, "", nil
}

// nameImage has a name of one of homes stand for what was found. write is held.
func (s *Set) nameImage(ctx context.Context, space string, rec catalog.Record, to found) error {
	name := named{space, rec.Name}
	before := s.image(s.idOf(name))
	rec.Image = ""
	if to.image != nil {
		rec.Image = to.image.Image.ID
	}
	isNew := to.image != nil && s.image(rec.Image) == nil
	change := catalog.Change{Set: []catalog.Record{rec}}
	if isNew {
		change.Also = func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, rec.Image, to.image) }
	}
	if err := s.apply(ctx, space, change); err != nil {
		return err
	}
	s.mu.Lock()
	if isNew {
		s.images[rec.Image] = to.image
	}
	delete(s.home(space), rec.Name)
	if rec.Image != "" {
		s.home(space)[rec.Name] = rec.Image
	}
	s.waiting.stop(name)
	if to.lacks != "" {
		s.waiting[to.lacks] = append(s.waiting[to.lacks], name)
	}
	s.listed.changed++
	s.mu.Unlock()
	if before != nil && (before.Given || before.Passing) && before.Image.ID != rec.Image {
		s.collectLater() // it may have lost its last name
	}
	return nil
}

func (s *Set) idOf(n named) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.home(n.space)[n.name]
}

// waiting are names of homes that stand for no image yet, by the document that
// has to come first.
type waiting map[digest.Digest][]named

func (w waiting) stop(name named) {
	for d, names := range w {
		if w[d] = slices.DeleteFunc(names, func(n named) bool { return n == name }); len(w[d]) == 0 {
			delete(w, d)
		}
	}
}

// Arrived implements content.Natives: names that wait for a blob may be images
// now.
func (s *Set) Arrived(ctx context.Context, d digest.Digest) {
	s.mu.RLock()
	names := slices.Clone(s.waiting[d])
	s.mu.RUnlock()
	for _, name := range names {
		if err := s.lookAgain(ctx, name); err != nil && !isMissing(err) {
			s.Log.WarnContext(ctx, "a name does not become an image of this node", "namespace", name.space, "name", name.name, "err", err)
		}
	}
}

func (s *Set) lookAgain(ctx context.Context, name named) error {
	s.write.Lock()
	defer s.write.Unlock()
	rec, err := s.namesIn(name.space).Get(name.name)
	if err != nil || rec.Image != "" {
		return err
	}
	to, err := s.given(ctx, rec.Target)
	if err != nil {
		return err
	}
	return s.nameImage(ctx, name.space, rec, to)
}

// awaitNamed looks at the names that stood for no image when the node ended.
func (s *Set) awaitNamed(ctx context.Context) error {
	for _, space := range s.homes() {
		if err := s.awaitNamedIn(ctx, space); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) awaitNamedIn(ctx context.Context, space string) error {
	for _, rec := range s.namesIn(space).List() {
		name := named{space, rec.Name}
		if rec.Image != "" && s.images[rec.Image] != nil {
			continue
		}
		to, err := s.given(ctx, rec.Target)
		switch {
		case err != nil:
			return err
		case to.image != nil:
			if err := s.lookAgain(ctx, name); err != nil {
				return err
			}
		case to.lacks != "":
			s.waiting[to.lacks] = append(s.waiting[to.lacks], name)
		}
	}
	return nil
}

// dropNameless drops images of clients that have neither names nor containers.
func (s *Set) dropNameless(ctx context.Context) error {
	var failed error
	for _, rec := range s.all() {
		if rec.Given || rec.Passing {
			failed = errors.Join(failed, s.dropIfNameless(ctx, rec.Image.ID))
		}
	}
	return failed
}

func (s *Set) dropIfNameless(ctx context.Context, id string) error {
	s.write.Lock()
	defer s.write.Unlock()
	rec := s.image(id)
	if rec == nil || !rec.Given && !rec.Passing || len(s.everyName(id)) > 0 || len(s.usersOf(id)) > 0 {
		return nil
	}
	_, err := s.drop(ctx, rec, nil, true)
	return err
}

// sizeOf is what an image's layers unpack to. Of a client's image that is not
// known until all of them are unpacked.
func (s *Set) sizeOf(ctx context.Context, rec *record) int64 {
	if !rec.Given || rec.Image.Size > 0 {
		return rec.Image.Size
	}
	var size int64
	for _, key := range chain(rec.Layers) {
		info, err := s.Snapshots.Stat(ctx, key)
		if err != nil {
			return rec.About
		}
		n, _ := strconv.ParseInt(info.Labels[layerLabel], 10, 64)
		size += n
	}
	return size
}

// unpacksTo is about what a layer unpacks to: gzip says so at its end, modulo
// 4 GiB, and of the last of several members only.
func (s *Set) unpacksTo(l layer) int64 {
	f, err := s.Blobs.Reader(s.noting.life, l.Digest)
	if err != nil {
		return l.Size
	}
	defer f.Close()
	var magic, last [4]byte
	_, err1 := f.ReadAt(magic[:], 0)
	_, err2 := f.ReadAt(last[:], l.Size-int64(len(last)))
	if err1 != nil || err2 != nil || blob.Detect(magic[:]) != blob.Gzip {
		return l.Size
	}
	return max(l.Size, int64(binary.LittleEndian.Uint32(last[:])))
}
