package lcfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"berth/base/errs"
	"berth/image/layer"
	"berth/image/object"
	"berth/image/tree"
	"berth/node/snapshot"
)

// inlineLimit is the size up to which bodies are kept in the metadata: an
// object costs a file and a block.
const inlineLimit = layer.InlineLimit

// ingest is a layer in memory, its bodies objects, named by no record yet.
type ingest struct {
	store  *Store
	id     string
	root   *tree.Node
	batch  *object.Batch
	recipe string        // temporary name
	sum    string        // sha256 of the recipe
	hidden []tree.Digest // bodies that only the recipe names
	excess []tree.Digest // those that were too many
	size   int64
	usage  snapshot.Usage

	mu   sync.Mutex
	done bool // committed or dropped
}

// Ingest turns layer into a tree and objects.
func (s *Store) Ingest(ctx context.Context, stream io.Reader) (snapshot.Ingest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	in, err := s.read(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("unpack layer: %w", errs.Full(err))
	}
	return in, nil
}

func (s *Store) read(ctx context.Context, stream io.Reader) (_ *ingest, err error) {
	batch, err := s.objects.Begin(ctx)
	if err != nil {
		return nil, err
	}
	s.ingests.Add(1)
	in := &ingest{store: s, id: s.newID(), batch: batch}
	recipe, err := os.CreateTemp(filepath.Join(s.dir, "recipes"), temporaryPrefix)
	if err == nil {
		in.recipe = recipe.Name()
		sum := sha256.New()
		in.root, err = layer.Read(ctx, layer.Config{
			Objects: batch, InlineLimit: inlineLimit, MaxBytes: s.maxLayer, Recipe: io.MultiWriter(recipe, sum), Hidden: &in.hidden,
		}, stream)
		in.sum = hex.EncodeToString(sum.Sum(nil))
		err = errors.Join(err, recipe.Close())
	}
	if err != nil {
		in.drop()
		return nil, err
	}
	in.usage.Size, in.usage.Inodes = tree.Usage(in.root)
	in.size, err = bytesOf(in.root)
	return in, err
}

// bytesOf adds up the bodies of a tree's files.
func bytesOf(root *tree.Node) (size int64, err error) {
	seen := map[*tree.Node]struct{}{}
	err = tree.Walk(root, func(_ string, n *tree.Node) error {
		if _, met := seen[n]; n.IsRegular() && !met {
			seen[n] = struct{}{}
			size += n.Size
		}
		return nil
	})
	return size, err
}

func (in *ingest) Size() int64 { return in.size }

// Abort drops the layer.
func (in *ingest) Abort(context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.done {
		in.drop()
	}
	return nil
}

// drop forgets the layer. Objects that only it had are orphans now.
func (in *ingest) drop() {
	in.done = true
	in.store.ingests.Add(-1)
	if in.recipe != "" {
		_ = os.Remove(in.recipe)
	}
	in.batch.End()
	var digests []tree.Digest // nil: not known
	if in.root != nil {
		digests = append([]tree.Digest{}, slices.Concat(in.hidden, in.excess, tree.Objects(in.root))...)
	}
	in.store.orphan(digests)
	in.root = nil
}

// Commit names the layer. Folders that its tar only implied get the looks
// that they have in the parent.
func (in *ingest) Commit(ctx context.Context, name, parent snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.done {
		return snapshot.Committed{}, errs.New(errs.Conflict, "commit layer %s: it is committed or dropped already", name)
	}
	s := in.store
	rec, err := s.claim(ctx, snapshot.KindCommitted, name, parent, labels)
	if err != nil {
		if errors.Is(err, errs.Exists) {
			in.drop()
		}
		return snapshot.Committed{}, fmt.Errorf("commit layer: %w", err)
	}
	rec.ID = in.id // the id that claim chose is never used
	info, err := in.place(ctx, rec)
	if err != nil {
		s.release(rec)
		return snapshot.Committed{}, fmt.Errorf("commit layer: %w", errs.Full(err))
	}
	in.done = true
	s.ingests.Add(-1)
	in.batch.End()
	in.root = nil
	if len(in.excess) > 0 {
		s.orphan(in.excess)
	}
	s.nudge(s.unsafe)
	s.changed()
	return snapshot.Committed{Info: info}, nil
}

// place writes the image of the layer and shows its record.
func (in *ingest) place(ctx context.Context, rec *record) (snapshot.Info, error) {
	s := in.store
	below, settled, err := in.below(ctx, rec.Parent)
	if err != nil {
		return snapshot.Info{}, err
	}
	delta := fit(in.root, below)
	image, letGo, err := s.writeLayer(delta)
	if err != nil {
		return snapshot.Info{}, err
	}
	defer letGo()
	in.boundHidden()
	if in.recipe != "" {
		if err := os.Rename(in.recipe, s.recipe(in.id)); err != nil {
			return snapshot.Info{}, err
		}
	}
	rec.Delta, rec.Recipe, rec.RecipeSum, rec.Boot, rec.Usage = image, in.recipe != "", in.sum, s.boot, &in.usage
	rec.Opaque, rec.Looks, rec.Hidden = delta.Opaque, looksOf(delta), hexDigests(in.hidden)
	if rec.Opaque {
		below, settled = nil, true
	}
	if settled {
		s.trees.put(rec.ID, tree.Merge(below, delta))
	}
	return s.show(rec), nil
}

// below returns the tree under the layer, where the layer leans on it, or it is
// at hand. Settled says that it is there, and lacks no body.
func (in *ingest) below(ctx context.Context, parent snapshot.Key) (root *tree.Node, settled bool, err error) {
	if parent == "" {
		return nil, true, nil
	}
	if !leansOnBelow(in.root) {
		if rec, err := in.store.find(parent); err == nil {
			root = in.store.trees.get(rec.ID)
			return root, root != nil, nil
		}
	}
	below, err := in.store.chainTree(ctx, parent)
	if err != nil {
		return nil, false, err
	}
	return below.root, len(below.bodies) == 0, nil
}

func looksOf(root *tree.Node) looks {
	return looks{Mode: root.Mode & 0o7777, UID: root.UID, GID: root.GID}
}

func (s *Store) recipe(id string) string { return filepath.Join(s.dir, "recipes", id) }
