package layer

import (
	"archive/tar"
	"fmt"
	"iter"

	"berth/image/tree"
)

// Listed makes the tree of a layer whose entries are known from elsewhere than
// its tar, in their order and each with the digest of its body, if it has one.
// What is hostile in a tar is so here.
func Listed(entries iter.Seq2[*tar.Header, tree.Digest]) (*tree.Node, error) {
	b := newBuilder()
	for h, d := range entries {
		e := entryOf(h)
		n, err := b.add(&e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", brief(h.Name), err)
		}
		if n == nil {
			continue
		}
		n.Size = h.Size
		if n.Size > 0 {
			n.Object = d
		} else {
			n.Body = []byte{}
		}
	}
	b.names.Finish()
	return b.root, nil
}
