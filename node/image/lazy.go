package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/pull"
	"berth/image/toc"
	"berth/image/tree"
	"berth/node/lazy"
	"berth/node/snapshot"
	"berth/spec"
)

// Laziness says when an image may be used before all of it is here.
type Laziness string

// The ways.
const (
	// LazyAuto is for layers that were here before: their table of contents is
	// known, and verified.
	LazyAuto Laziness = "auto"
	// LazyOn is also for layers that bring a table of contents with them, and
	// however little is missing.
	LazyOn Laziness = "on"
	// LazyOff has every pull wait until all is here.
	LazyOff Laziness = "off"
)

// ParseLaziness reads how lazy to be; "" is LazyAuto.
func ParseLaziness(text string) (Laziness, error) {
	switch l := Laziness(text); l {
	case "":
		return LazyAuto, nil
	case LazyAuto, LazyOn, LazyOff:
		return l, nil
	}
	return "", errs.New(errs.Invalid, "lazy %q: expected %s, %s or %s", text, LazyAuto, LazyOn, LazyOff)
}

// Lacking is a store of snapshots in which layers may lack bodies for a while.
type Lacking interface {
	lazy.Bodies
	// IngestKnown takes a layer of which the tree and the recipe are known.
	IngestKnown(ctx context.Context, delta *tree.Node, recipe io.Reader) (snapshot.Ingest, error)
	// Whole takes the label snapshot.Missing from a layer that lacks nothing
	// any more. Conflict: it does.
	Whole(ctx context.Context, key snapshot.Key) error
	// Checked returns when what a crash may have damaged was looked at.
	Checked(ctx context.Context) error
	// Delta is the tree of what a layer changes, Recipe what its tar is made
	// from again, with its size.
	Delta(ctx context.Context, key snapshot.Key) (*tree.Node, error)
	Recipe(ctx context.Context, key snapshot.Key) (io.ReadCloser, int64, error)
}

// Lazily is what a Set needs to be lazy.
type Lazily struct {
	When    Laziness
	Store   Lacking
	Missing *lazy.Set
	Tables  *toc.Store // noted here
	Given   *toc.Store // that layers brought with them
	// First lists bodies that containers of an image wanted when they started,
	// in that order. May be nil.
	First func(ctx context.Context, imageID string) []tree.Digest
}

const (
	// leastLazy is how many bytes of blobs must be missing for LazyAuto.
	leastLazy = 4 << 20
	// longestRun is how much of a blob may have to be read for one file.
	longestRun = 16 << 20
)

// beginLazily makes layers of what is known, without their bodies, which come
// in the background; the pull then finds them there. It says whether any is.
// What fails is no failure of the pull: it goes on in the ordinary way.
func (s *Set) beginLazily(ctx context.Context, id string, layers []layer, req spec.PullRequest, report func(spec.Progress)) bool {
	all := s.knownLayers(ctx, layers)
	defer closeKnown(all)
	if len(all) == 0 {
		return false
	}
	sources := s.newSources(req)
	image := lazy.Image{Name: req.Reference}
	if s.Lazy.First != nil {
		image.First = s.Lazy.First(ctx, id)
	}
	for _, k := range all {
		l, err := s.commitKnown(ctx, k, sources)
		if err != nil {
			s.Log.WarnContext(ctx, "a layer is not pulled lazily", "layer", k.layer.Digest, "err", err)
			break
		}
		if len(l.Missing) > 0 {
			image.Layers = append(image.Layers, l)
		}
		report(spec.Progress{Phase: spec.Unpacking, Item: k.layer.Digest.String(), Status: "complete"})
	}
	s.Lazy.Missing.Add(image)
	s.Log.InfoContext(ctx, "an image can be used before all of it is here", "image", req.Reference, "layers", len(image.Layers), "first", len(image.First))
	return len(image.Layers) > 0
}

// commitKnown makes a known layer a snapshot, in place of an unpacking.
func (s *Set) commitKnown(ctx context.Context, k *known, from *sources) (l lazy.Layer, err error) {
	flight, first := s.flights.take(k.key)
	if !first {
		return l, errs.New(errs.Conflict, "another pull is at it")
	}
	defer func() { s.flights.land(k.key, flight, err) }()
	recipe, _ := k.file.Part(recipePart)
	in, err := s.Lazy.Store.IngestKnown(ctx, k.root, recipe)
	if err != nil {
		return l, err
	}
	labels := layerLabels(in.Size(), k.table.Content)
	l = s.lazyLayer(k.key, k.layer, k.table, lackOf(k.root, s.Lazy.Store.Has), from)
	if len(l.Missing) > 0 {
		labels[snapshot.Missing] = k.layer.Digest.String()
	}
	if _, err := in.Commit(ctx, k.key, k.parent, labels); err != nil {
		return l, errors.Join(err, in.Abort(context.WithoutCancel(ctx)))
	}
	return l, nil
}

// lazyLayer says how the bodies of a layer come.
func (s *Set) lazyLayer(key snapshot.Key, l layer, table *toc.Table, missing []lazy.Missing, from *sources) lazy.Layer {
	made := lazy.Layer{
		Key: string(key), Table: table, Missing: missing,
		Part: func(ctx context.Context, begin, end int64) (io.ReadCloser, error) {
			return from.part(ctx, l, begin, end)
		},
		Whole: func(ctx context.Context) error {
			err := s.Lazy.Store.Whole(ctx, key)
			if isMissing(err) {
				return nil // the image is gone
			}
			return err
		},
	}
	if scrubber, ok := s.Snapshots.(Scrubber); ok && s.Policy == Keep && !s.Blobs.Has(l.Digest) {
		made.Rest = func(ctx context.Context) error {
			return s.healFrom(ctx, scrubber, placed{layer: l, key: key}, func(ctx context.Context, _ int) (tarStream, error) {
				return s.streamTar(ctx, l, from)
			})
		}
	}
	return made
}

// streamTar opens the tar of a layer whose blob is stored on the way.
func (s *Set) streamTar(ctx context.Context, l layer, from *sources) (tarStream, error) {
	packed, err := s.Blobs.Stream(ctx, l.Digest, l.Size, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return from.part(ctx, l, offset, l.Size)
	})
	if err != nil {
		return nil, err
	}
	patient := struct {
		io.Reader
		io.Closer
	}{s.Lazy.Missing.Patient(ctx, packed), packed}
	plain, _, err := blob.Uncompress(patient, s.MaxLayer)
	if err != nil {
		return nil, errors.Join(err, packed.Close())
	}
	return &fetchedTar{plain, patient}, nil
}

// Resume goes on with layers that lacked bodies when the node ended. Call it
// once, before containers are started.
func (s *Set) Resume(ctx context.Context) error {
	if s.Lazy == nil {
		return nil
	}
	found := map[snapshot.Key]bool{}
	err := s.Snapshots.Walk(ctx, func(info snapshot.Info) error {
		if info.Kind == snapshot.KindCommitted && info.Labels[snapshot.Missing] != "" {
			found[info.Key] = true
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("go on with missing files: %w", err)
	}
	if len(found) > 0 {
		if err := s.Lazy.Store.Checked(ctx); err != nil {
			return fmt.Errorf("go on with missing files: %w", err)
		}
	}
	sources := s.newSources(spec.PullRequest{})
	for _, rec := range s.all() {
		if len(rec.Early) > 0 {
			s.Lazy.Missing.Add(s.resumeEarly(ctx, rec, found))
			continue
		}
		image := lazy.Image{Name: rec.Image.ID}
		for n, key := range chain(rec.Layers) {
			if !found[key] {
				continue
			}
			delete(found, key)
			l, err := s.resume(ctx, key, rec.Layers[n], sources)
			if err != nil {
				s.Log.ErrorContext(ctx, "files of an image stay missing: remove it and pull it again", "image", s.call(rec), "err", err)
				continue
			}
			image.Layers = append(image.Layers, l)
		}
		if len(image.Layers) > 0 && s.Lazy.First != nil {
			image.First = s.Lazy.First(ctx, rec.Image.ID)
		}
		s.Lazy.Missing.Add(image)
	}
	s.Lazy.Missing.Ready(ctx)
	return nil
}

func (s *Set) resume(ctx context.Context, key snapshot.Key, l layer, from *sources) (lazy.Layer, error) {
	root, err := s.Lazy.Store.Delta(ctx, key)
	if err != nil {
		return lazy.Layer{}, err
	}
	missing := lackOf(root, s.Lazy.Store.Has)
	table := &toc.Table{Blob: l.Digest, Size: l.Size}
	k, err := s.openKnown(l, key)
	switch {
	case err == nil:
		defer k.file.Close()
		table = k.table
	case len(missing) > 0 && s.Policy != Keep:
		return lazy.Layer{}, err
	}
	return s.lazyLayer(key, l, table, missing, from), nil
}

// Whole returns when all files of an image are here.
func (s *Set) Whole(ctx context.Context, imageID string) error {
	if s.Lazy == nil {
		return nil
	}
	rec, err := s.find(imageID)
	if err != nil {
		return err
	}
	return s.Lazy.Missing.Wait(ctx, texts(slices.Concat(chain(rec.Layers), rec.Early))...)
}

// lacks says whether bodies of layers are still on their way.
func (s *Set) lacks(layers []layer) bool {
	return s.Lazy != nil && s.Lazy.Missing.Missing(texts(chain(layers))...)
}

func texts(keys []snapshot.Key) []string {
	all := make([]string, len(keys))
	for n, key := range keys {
		all[n] = string(key)
	}
	return all
}

// rememberAuth remembers a login while the node runs, for what is still to be
// fetched from a repository.
func (s *Set) rememberAuth(repository string, auth *spec.RegistryAuth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if auth != nil && s.Lazy != nil {
		s.auths[repository] = auth
	}
}

func (s *Set) authFor(repository string) *spec.RegistryAuth {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.auths[repository]
}

// forgetLazily ends the work for a layer that is removed.
func (s *Set) forgetLazily(key snapshot.Key) {
	if s.Lazy != nil {
		s.Lazy.Missing.Forget(string(key))
	}
}

// sources open parts of blobs in the repositories that have them: first in
// the one of the request they are made for, with its login, which is in memory
// alone.
type sources struct {
	set   *Set
	first spec.PullRequest

	mu   sync.Mutex
	open map[string]*pull.Source
}

func (s *Set) newSources(first spec.PullRequest) *sources {
	return &sources{set: s, first: first, open: map[string]*pull.Source{}}
}

func (f *sources) part(ctx context.Context, l layer, from, to int64) (io.ReadCloser, error) {
	if stored, err := f.set.Blobs.Open(ctx, l.Digest, from); err == nil {
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(stored, to-from), stored}, nil
	}
	requests := []spec.PullRequest{f.first}
	for _, p := range f.set.whereFrom(l.Digest) {
		requests = append(requests, spec.PullRequest{Reference: p.Repository, Insecure: p.Insecure, Auth: f.set.authFor(p.Repository)})
	}
	requests = slices.DeleteFunc(requests, func(r spec.PullRequest) bool { return r.Reference == "" })
	why := errs.New(errs.NotFound, "no registry is known to have blob %s", l.Digest)
	for _, request := range requests {
		source, err := f.source(ctx, request)
		if err == nil {
			var r io.ReadCloser
			if r, err = source.Part(ctx, l.Descriptor, from, to); err == nil {
				return r, nil
			}
		}
		if why = err; ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, why
}

func (f *sources) source(ctx context.Context, request spec.PullRequest) (*pull.Source, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fmt.Sprintf("%s %t %p", request.Reference, request.Insecure, request.Auth)
	if source := f.open[id]; source != nil {
		return source, nil
	}
	source, err := f.set.puller.Source(context.WithoutCancel(ctx), request)
	if err == nil {
		f.open[id] = source
	}
	return source, err
}
