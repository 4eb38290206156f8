package lcfs

import (
	"context"
	"io"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/snapshot"
)

// content is a tree, and where the bodies are that are neither in it nor
// objects.
type content struct {
	root   *tree.Node
	bodies map[*tree.Node]bodyFile
}

// bodyFile is a file in the folder of an Active snapshot or an unsettled layer.
type bodyFile struct {
	id, path string
	inode    uint64
}

// open opens the body of a node for reading.
func (s *Store) open(c *content) func(path string, n *tree.Node) (io.ReadCloser, error) {
	return func(_ string, n *tree.Node) (io.ReadCloser, error) {
		if n.Object != (tree.Digest{}) {
			return s.objects.Open(n.Object)
		}
		return s.openBody(c.bodies[n])
	}
}

// delta reads what a layer or an Active snapshot changes.
func (s *Store) delta(ctx context.Context, rec *record) (*content, error) {
	if rec.isSettled() {
		root, err := s.readImage(rec.Delta)
		return &content{root: root}, err
	}
	if rec.Kind == snapshot.KindView {
		return &content{root: &tree.Node{Mode: unix.S_IFDIR | 0o755}}, nil
	}
	return s.readUpper(ctx, rec)
}

// chainTree is the tree that shows at key, which is Committed or "".
func (s *Store) chainTree(ctx context.Context, key snapshot.Key) (*content, error) {
	if key == "" {
		return &content{}, nil
	}
	_, letGo, err := s.pin(key)
	if err != nil {
		return nil, errs.New(errs.NotFound, "layer %s was lost", key)
	}
	defer letGo()
	chain, err := s.chain(key)
	if err != nil {
		return nil, err
	}
	made := &content{bodies: map[*tree.Node]bodyFile{}}
	from := len(chain)
	for i, rec := range chain {
		if root := s.trees.get(rec.ID); root != nil {
			made.root, from = root, i
			break
		}
		if rec.Merged != "" {
			if made.root, err = s.readImage(rec.Merged); err != nil {
				return nil, err
			}
			from = i
			break
		}
	}
	settled := true
	for _, rec := range slices.Backward(chain[:from]) {
		delta, err := s.delta(ctx, rec)
		if err != nil {
			return nil, err
		}
		settled = settled && rec.isSettled()
		maps.Copy(made.bodies, delta.bodies)
		made.root = tree.Merge(made.root, delta.root)
	}
	if settled && len(chain) > 0 {
		s.trees.put(chain[0].ID, made.root)
	}
	return made, nil
}

// keptTrees is how many trees stay in memory: a pull commits layer on layer.
const keptTrees = 3

// treeCache keeps the trees of settled chains that were last used, by the id
// of the topmost layer.
type treeCache struct {
	mu   sync.Mutex
	kept []keptTree // least recently used first
}

type keptTree struct {
	id   string
	root *tree.Node
}

func (c *treeCache) get(id string) *tree.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.kept {
		if k.id == id {
			c.kept = append(slices.Delete(c.kept, i, i+1), k)
			return k.root
		}
	}
	return nil
}

func (c *treeCache) put(id string, root *tree.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = slices.DeleteFunc(c.kept, func(k keptTree) bool { return k.id == id })
	if len(c.kept) == keptTrees {
		c.kept = slices.Delete(c.kept, 0, 1)
	}
	c.kept = append(c.kept, keptTree{id, root})
}

// clear gives the memory back.
func (c *treeCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = nil
}
