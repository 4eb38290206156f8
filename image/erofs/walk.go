package erofs

import (
	"fmt"

	"berth/base/errs"
	"berth/image/tree"
)

// link is a file with several names, as far as they are known.
type link struct {
	node *tree.Node
	left uint32 // names still to come
}

// tree reads what is below a folder.
func (r *reader) tree() (*tree.Node, error) {
	root, err := r.inode(r.img.root)
	if err != nil {
		return nil, err
	}
	if !root.node.IsDir() {
		return nil, errs.New(errs.Invalid, "the root is no folder")
	}
	w := walk{reader: r, links: map[uint64]*link{}, met: map[uint64]bool{}}
	if err := w.folder(root, root.nid, 0); err != nil {
		return nil, err
	}
	for nid, l := range w.links {
		if l.left > 0 {
			return nil, errs.New(errs.Invalid, "inode %d lacks %d of its names", nid, l.left)
		}
	}
	return root.node, nil
}

// walk reads a whole tree.
type walk struct {
	*reader
	links map[uint64]*link
	met   map[uint64]bool // folders
}

func (w *walk) folder(in found, parent uint64, depth int) error {
	if w.met[in.nid] || depth > maxDepth {
		return errs.New(errs.Invalid, "a folder is in itself, or in too many")
	}
	w.met[in.nid] = true
	list, err := w.entries(&in, parent)
	if err != nil {
		return fmt.Errorf("folder %d: %w", in.nid, err)
	}
	entries := make([]tree.Entry, 0, len(list))
	var folders []found
	for _, e := range list {
		child, err := w.entry(e)
		if err != nil {
			return err
		}
		if child.node.IsDir() {
			folders = append(folders, child)
		}
		entries = append(entries, tree.Entry{Name: e.name, Node: child.node})
	}
	in.node.SetEntries(entries)
	if int64(in.links) != int64(len(folders))+2 {
		return errs.New(errs.Invalid, "folder %d has %d links", in.nid, in.links)
	}
	for _, f := range folders {
		if err := w.folder(f, in.nid, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// entry reads the inode of an entry, if no other name of it came before.
func (w *walk) entry(e entry) (found, error) {
	if l := w.links[e.nid]; l != nil {
		if l.left--; l.left == ^uint32(0) {
			return found{}, errs.New(errs.Invalid, "inode %d has more names than it says", e.nid)
		}
		return found{node: l.node}, e.matches(l.node)
	}
	child, err := w.inode(e.nid)
	if err == nil {
		err = e.matches(child.node)
	}
	if err == nil && child.links > 1 && !child.node.IsDir() {
		w.links[e.nid] = &link{child.node, child.links - 1}
	}
	return child, err
}

// matches fails if the entry says that n is of another type.
func (e entry) matches(n *tree.Node) error {
	if fileType(n.Mode) != e.ftype {
		return errs.New(errs.Invalid, "%.300q is of another type than its inode", e.name)
	}
	return nil
}
