package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/erofs"
	recipes "berth/image/layer"
	"berth/image/pull"
	"berth/image/toc"
	"berth/image/tree"
	"berth/node/lazy"
	"berth/node/snapshot"
)

// What is kept of a layer beside its table of contents.
const (
	treePart   = "tree" // an EROFS image of what it changes, in zstd
	recipePart = "recipe"
	// chainPart is the key that the layer had. What a layer changes depends on
	// what is below it: the same blob on another chain may delete more.
	chainPart = "chain"
)

// known is a layer of which all is known but its bodies.
type known struct {
	layer  layer
	key    snapshot.Key
	parent snapshot.Key
	file   *toc.File
	table  *toc.Table
	root   *tree.Node
}

// openKnown opens what is known of a layer under its key. NotFound: nothing.
func (s *Set) openKnown(l layer, key snapshot.Key) (_ *known, err error) {
	file, err := s.Lazy.Tables.Get(l.Digest)
	if err != nil {
		return nil, err
	}
	k := &known{layer: l, key: key, file: file, table: file.Table}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if k.table.DiffID != l.DiffID || k.table.Size != l.Size {
		return nil, errs.New(errs.NotFound, "what is known of blob %s is of another layer", l.Digest)
	}
	if !k.isOnItsChain() {
		return nil, errs.New(errs.NotFound, "what is known of blob %s is of it on other layers", l.Digest)
	}
	packed, ok := file.Part(treePart)
	if !ok {
		return nil, errs.New(errs.NotFound, "the tree of blob %s is not known", l.Digest)
	}
	if k.root, err = readTree(packed); err != nil {
		return nil, err
	}
	return k, k.findBodies()
}

func (k *known) isOnItsChain() bool {
	part, ok := k.file.Part(chainPart)
	if !ok {
		return false
	}
	key, err := io.ReadAll(io.LimitReader(part, int64(len(k.key))+1))
	return err == nil && string(key) == string(k.key)
}

func readTree(packed io.Reader) (*tree.Node, error) {
	z, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	image, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	opened, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return nil, err
	}
	return opened.Tree()
}

func (k *known) findBodies() error {
	recipe, ok := k.file.Part(recipePart)
	if !ok {
		return errs.New(errs.NotFound, "the recipe of blob %s is not known", k.layer.Digest)
	}
	var bodies []toc.Body
	for b, err := range recipes.Bodies(recipe) {
		if err != nil {
			return err
		}
		bodies = append(bodies, toc.Body{Object: b.Digest, Offset: b.Offset, Size: b.Size})
	}
	return k.table.SetBodies(slices.Values(bodies))
}

// lackOf lists the bodies of a tree that are not here.
func lackOf(root *tree.Node, has func(tree.Digest) bool) []lazy.Missing {
	seen := map[tree.Digest]bool{}
	var list []lazy.Missing
	_ = tree.Walk(root, func(_ string, n *tree.Node) error { // never fails
		if n.Object != (tree.Digest{}) && !seen[n.Object] {
			seen[n.Object] = true
			if !has(n.Object) {
				list = append(list, lazy.Missing{Object: n.Object, Size: n.Size})
			}
		}
		return nil
	})
	return list
}

// knownLayers opens what is known of the layers that are not unpacked, lowest
// first. None, if it is not known of all, or not worth while.
func (s *Set) knownLayers(ctx context.Context, layers []layer) (all []*known) {
	if s.Lazy == nil || s.Lazy.When == LazyOff {
		return nil
	}
	keys := chain(layers)
	u := unpacking{set: s, keys: keys}
	first := u.known(ctx)
	var bytes int64
	for _, l := range layers[first:] {
		if bytes += l.Size; !s.Lazy.Tables.Has(l.Digest) {
			return nil
		}
	}
	if first == len(layers) || s.Lazy.When == LazyAuto && bytes < leastLazy {
		return nil
	}
	for n := first; n < len(layers); n++ {
		k, err := s.openKnown(layers[n], keys[n])
		if err != nil {
			s.Log.DebugContext(ctx, "a layer is not pulled lazily", "layer", layers[n].Digest, "err", err)
			closeKnown(all)
			return nil
		}
		if n > 0 {
			k.parent = keys[n-1]
		}
		all = append(all, k)
		if s.Lazy.When == LazyAuto && k.table.Longest() > longestRun || !k.findable(s.Lazy.Store.Has) {
			closeKnown(all)
			return nil
		}
	}
	return all
}

// findable says whether all that is missing can be found in the blob.
func (k *known) findable(has func(tree.Digest) bool) bool {
	for _, m := range lackOf(k.root, has) {
		if _, ok := k.table.Find(m.Object); !ok {
			return false
		}
	}
	return true
}

func closeKnown(all []*known) {
	for _, k := range all {
		_ = k.file.Close()
	}
}

// notes are the tables of the layers of one pull, by the layer's number.
type notes struct {
	mu     sync.Mutex
	tables map[int]*toc.Recorder
}

func (n *notes) put(layer int, table *toc.Recorder) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tables == nil {
		n.tables = map[int]*toc.Recorder{}
	}
	n.tables[layer] = table
}

// recordTar is pull.Image.Tar, and notes the table of the layer's blob unless
// it is known.
func (s *Set) recordTar(ctx context.Context, from *pull.Image, n int, notes *notes) (tarStream, error) {
	l := from.Layers[n]
	if s.Lazy == nil || s.Lazy.When == LazyOff || s.Lazy.Tables.Has(l.Digest) {
		return from.Tar(ctx, n)
	}
	packed, err := from.Stream(ctx, n)
	if err != nil {
		return nil, err
	}
	plain, err := toc.Record(packed, s.MaxLayer, l.Digest, l.Size)
	if err != nil {
		return nil, errors.Join(err, packed.Close())
	}
	notes.put(n, plain)
	return &fetchedTar{plain, packed}, nil
}

// recordStream is recordTar of a layer whose pull is over.
func (s *Set) recordStream(ctx context.Context, l layer, n int, from *sources, notes *notes) (tarStream, error) {
	source := func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return from.part(ctx, l, offset, l.Size)
	}
	open := s.Blobs.Pass
	if s.Policy == Keep {
		open = func(ctx context.Context, d digest.Digest, size int64, source blob.Source) (blob.Reading, error) {
			return s.Blobs.Stream(ctx, d, size, source)
		}
	}
	packed, err := open(ctx, l.Digest, l.Size, source)
	if err != nil {
		return nil, err
	}
	patient := struct {
		io.Reader
		io.Closer
	}{s.Lazy.Missing.Patient(ctx, packed), packed}
	plain, err := toc.Record(patient, s.MaxLayer, l.Digest, l.Size)
	if err != nil {
		return nil, errors.Join(err, packed.Close())
	}
	notes.put(n, plain)
	return &fetchedTar{plain, patient}, nil
}

// noting keeps notes in the background.
type noting struct {
	life context.Context //nolint:containedctx // ends with the Set
	stop context.CancelFunc
	work sync.WaitGroup
}

// Close ends the work in the background.
func (s *Set) Close() error {
	s.noting.stop()
	s.noting.work.Wait()
	return nil
}

// keepNotes keeps what is known of new layers, so that it is known when their
// image has been removed and comes again.
func (s *Set) keepNotes(layers []layer, notes *notes) {
	if len(notes.tables) == 0 {
		return
	}
	ctx, keys := s.noting.life, chain(layers)
	s.noting.work.Go(func() {
		for n, recorder := range notes.tables {
			table := recorder.Table(layers[n].DiffID)
			if table == nil {
				continue
			}
			if err := s.keepNote(ctx, keys[n], table); err != nil && ctx.Err() == nil {
				s.Log.WarnContext(ctx, "the table of contents of a layer is not kept", "layer", table.Blob, "err", err)
			}
		}
		lacking := s.lacksBlob(ctx)
		if err := errors.Join(s.Lazy.Tables.Expire(ctx, lacking), s.Lazy.Given.Expire(ctx, lacking)); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "old tables of contents stay", "err", err)
		}
	})
}

func (s *Set) keepNote(ctx context.Context, key snapshot.Key, table *toc.Table) error {
	root, err := s.Lazy.Store.Delta(ctx, key)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if _, err := erofs.Write(z, root); err != nil {
		return errors.Join(err, z.Close())
	}
	if err := z.Close(); err != nil {
		return err
	}
	recipe, size, err := s.Lazy.Store.Recipe(ctx, key)
	if err != nil {
		return err
	}
	defer recipe.Close()
	return s.Lazy.Tables.Put(table, toc.Bytes(treePart, packed.Bytes()), toc.Bytes(chainPart, []byte(key)), toc.Part{Name: recipePart, Size: size, Body: recipe})
}

// lacksBlob says of which blobs bodies are still to come.
func (s *Set) lacksBlob(ctx context.Context) func(digest.Digest) bool {
	lacking := map[digest.Digest]bool{}
	err := s.Snapshots.Walk(ctx, func(info snapshot.Info) error {
		lacking[digest.Digest(info.Labels[snapshot.Missing])] = true
		return nil
	})
	return func(d digest.Digest) bool { return err != nil || lacking[d] }
}
