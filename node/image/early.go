package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/toc"
	"berth/image/tree"
	"berth/node/lazy"
	"berth/node/snapshot"
	"berth/spec"
)

// Layers that bring a table of contents with them can be used at their very
// first pull, before anybody has read one whole. Whether a table tells the
// truth only the whole layer shows, and other images may share the layer. So
// such layers get keys of their own, which no other image uses; the ordinary
// layers are unpacked and verified in the background, and when they are there
// they are what new containers stand on. Early ones go with the last container
// that was started on them.

// earlyKey is the key of a layer of which only the table of contents is known.
func earlyKey(parent snapshot.Key, l layer) snapshot.Key {
	sum := sha256.Sum256([]byte(string(parent) + " " + l.Digest.String()))
	return snapshot.Key("early-" + hex.EncodeToString(sum[:]))
}

// early is an image on its way in by the tables of its layers.
type early struct {
	set   *Set
	rec   *record
	from  *sources
	first int // the lowest layer that is not unpacked
	given []*toc.Given
}

// openEarly reads the tables of the layers that are not here; nil where they
// have none, or it is not wanted.
func (s *Set) openEarly(ctx context.Context, rec *record, req spec.PullRequest) *early {
	if s.Lazy == nil || s.Lazy.When != LazyOn {
		return nil
	}
	u := unpacking{set: s, keys: chain(rec.Layers)}
	e := &early{set: s, rec: rec, from: s.newSources(req), first: u.known(ctx)}
	for _, l := range rec.Layers[e.first:] {
		if !toc.HasGiven(l.Descriptor) {
			return nil
		}
	}
	for _, l := range rec.Layers[e.first:] {
		g, err := toc.ReadGiven(ctx, l.Descriptor, s.MaxLayer, func(ctx context.Context, from, to int64) (io.ReadCloser, error) { return e.from.part(ctx, l, from, to) })
		if err != nil {
			s.Log.WarnContext(ctx, "an image is pulled whole, for the table of contents of a layer is no use", "image", req.Reference, "err", err)
			return nil
		}
		e.given = append(e.given, g)
	}
	if len(e.given) == 0 {
		return nil
	}
	return e
}

// take makes layers of the tables and keeps the image. What it says goes on in
// the background.
func (e *early) take(ctx context.Context, as naming, at *place, report func(spec.Progress)) (image spec.Image, err error) {
	s := e.set
	keys := chain(e.rec.Layers)[:e.first]
	var size int64
	for _, key := range keys {
		info, err := s.Snapshots.Stat(ctx, key)
		if err != nil {
			return image, err
		}
		n, _ := strconv.ParseInt(info.Labels[layerLabel], 10, 64)
		size += n
	}
	rest := e.finishOnce()
	var lazily lazy.Image
	for i, g := range e.given {
		l := e.rec.Layers[e.first+i]
		var parent snapshot.Key
		if len(keys) > 0 {
			parent = keys[len(keys)-1]
		}
		key := earlyKey(parent, l)
		n, err := s.commitEarly(ctx, key, parent, l, g)
		if err != nil {
			return image, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		size += n
		keys = append(keys, key)
		made := s.lazyLayer(key, l, g.Table, lackOf(g.Root, s.Lazy.Store.Has), e.from)
		made.Rest = rest
		lazily.Layers = append(lazily.Layers, made)
		report(spec.Progress{Phase: spec.Unpacking, Item: l.Digest.String(), Status: "complete"})
	}
	s.settleChain(ctx, keys[len(keys)-1])
	e.rec.Image.Size, e.rec.Early = size, keys
	if image, err = s.keep(ctx, e.rec, as, at); err != nil {
		return image, err
	}
	lazily.Name = image.ID
	if s.Lazy.First != nil {
		lazily.First = s.Lazy.First(ctx, image.ID)
	}
	s.Lazy.Missing.Add(lazily)
	s.Log.InfoContext(ctx, "an image can be used before it was ever here", "image", as.names, "layers", len(lazily.Layers))
	return image, nil
}

func (s *Set) commitEarly(ctx context.Context, key, parent snapshot.Key, l layer, g *toc.Given) (size int64, err error) {
	if err := s.Lazy.Given.Put(g.Table); err != nil {
		return 0, err
	}
	in, err := s.Lazy.Store.IngestKnown(ctx, g.Root, nil)
	if err != nil {
		return 0, err
	}
	labels := layerLabels(in.Size(), 0)
	labels[snapshot.Missing] = l.Digest.String()
	if _, err := in.Commit(ctx, key, parent, labels); err != nil && !errors.Is(err, errs.Exists) {
		return 0, errors.Join(err, in.Abort(context.WithoutCancel(ctx)))
	}
	return in.Size(), nil
}

// finishOnce brings the whole image, for whichever of its layers asks first.
func (e *early) finishOnce() func(context.Context) error {
	var mu sync.Mutex
	done := false
	return func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return nil
		}
		err := e.finish(ctx)
		done = err == nil
		return err
	}
}

// finish unpacks the image in the ordinary way, which verifies it; then it
// stands on its ordinary layers.
func (e *early) finish(ctx context.Context) error {
	s := e.set
	s.keeping.begin()
	defer s.endKeeping(ctx)
	var notes notes
	size, err := s.unpack(ctx, unpacking{
		layers: e.rec.Layers, blobs: s.Policy == Keep, report: func(spec.Progress) {},
		open: func(ctx context.Context, n int) (tarStream, error) {
			return s.recordStream(ctx, e.rec.Layers[n], n, e.from, &notes)
		},
	})
	if errors.Is(err, errs.Invalid) {
		s.Log.ErrorContext(ctx, "an image is not what its tables of contents say: no container can be made of it", "image", s.call(e.rec), "err", err)
		return s.endEarly(ctx, e.rec.Image.ID, e.rec.Image.Size)
	}
	if err != nil {
		return err
	}
	keys := chain(e.rec.Layers)
	s.settleChain(ctx, keys[len(keys)-1])
	for n := e.first; n < len(keys); n++ {
		if err := s.fillSmall(ctx, keys[n], e.rec.Early[n]); err != nil {
			return err
		}
	}
	s.keepNotes(e.rec.Layers, &notes)
	return s.endEarly(ctx, e.rec.Image.ID, size)
}

// fillSmall gives an early layer the bodies that are no objects in the
// ordinary one.
func (s *Set) fillSmall(ctx context.Context, ordinary, early snapshot.Key) error {
	lacks, err := s.Lazy.Store.Delta(ctx, early)
	if isMissing(err) {
		return nil // nobody uses it
	}
	if err != nil {
		return err
	}
	missing := map[tree.Digest]bool{}
	for _, m := range lackOf(lacks, s.Lazy.Store.Has) {
		missing[m.Object] = true
	}
	root, err := s.Lazy.Store.Delta(ctx, ordinary)
	if err != nil {
		return err
	}
	return tree.Walk(root, func(_ string, n *tree.Node) error {
		d := tree.Digest(sha256.Sum256(n.Body))
		if len(n.Body) == 0 || !missing[d] {
			return nil
		}
		delete(missing, d)
		return s.Lazy.Store.Fill(ctx, d, int64(len(n.Body)), bytes.NewReader(n.Body))
	})
}

// endEarly has the image stand on its ordinary layers.
func (s *Set) endEarly(ctx context.Context, id string, size int64) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	rec := s.images[id]
	s.mu.RUnlock()
	if rec == nil || len(rec.Early) == 0 {
		return nil
	}
	changed := *rec
	changed.Early, changed.Image.Size = nil, size
	if err := s.DB.Update(ctx, func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, id, &changed) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[id] = &changed
	return nil
}

// resumeEarly goes on with an image that was early when the node ended.
func (s *Set) resumeEarly(ctx context.Context, rec *record, lacking map[snapshot.Key]bool) lazy.Image {
	e := &early{set: s, rec: rec, from: s.newSources(spec.PullRequest{})}
	ordinary := chain(rec.Layers)
	for e.first < len(ordinary) && rec.Early[e.first] == ordinary[e.first] {
		e.first++
	}
	rest := e.finishOnce()
	image := lazy.Image{Name: rec.Image.ID}
	for n := e.first; n < len(rec.Early); n++ {
		key, l := rec.Early[n], rec.Layers[n]
		if !lacking[key] {
			continue
		}
		delete(lacking, key)
		root, err := s.Lazy.Store.Delta(ctx, key)
		if err != nil {
			s.Log.ErrorContext(ctx, "a layer cannot be read", "layer", l.Digest, "err", err)
			continue
		}
		table := &toc.Table{Blob: l.Digest, Size: l.Size}
		if file, err := s.Lazy.Given.Get(l.Digest); err == nil {
			table = file.Table
			_ = file.Close()
		}
		made := s.lazyLayer(key, l, table, lackOf(root, s.Lazy.Store.Has), e.from)
		made.Rest = rest
		image.Layers = append(image.Layers, made)
	}
	if len(image.Layers) == 0 {
		s.noting.work.Go(func() {
			if err := rest(s.noting.life); err != nil && s.noting.life.Err() == nil {
				s.Log.WarnContext(s.noting.life, "an image is not verified yet: pull it again", "image", s.call(rec), "err", err)
			}
		})
	}
	return image
}
