// Package tree is a file tree as data: what one layer changes, or what a chain
// of layers shows. Bodies of files are not in it, but for very small ones; a
// regular file names its body by digest.
//
// A tree that is shared does not change: Merge and its like build new folders
// where something differs and share the rest.
package tree

import (
	"cmp"
	"crypto/sha256"
	"slices"

	"golang.org/x/sys/unix"
)

// Digest is the sha256 of a file's body. The zero Digest names none.
type Digest [sha256.Size]byte

// Xattr is an extended attribute under the full name that the tree's owner
// sees.
type Xattr struct {
	Name  string
	Value []byte
}

// Node is a file, folder or anything else that has an inode. Hard links are
// one Node under several names.
type Node struct {
	Mode     uint32 // with the type, as stat has it
	UID, GID uint32
	Size     int64 // of a regular file's body
	Sec      int64 // modification time
	Nsec     uint32
	Rdev     uint64  // of a device, as unix.Mkdev makes it
	Target   string  // of a symbolic link
	Body     []byte  // of a regular file that is kept here
	Object   Digest  // of a regular file whose body is kept as an object
	Xattrs   []Xattr // each name once, in any order
	// Opaque folders hide what layers below have in them.
	Opaque bool
	// Implied folders are only named on the way to something else; they look as
	// they do in the layer below.
	Implied bool

	entries []Entry // of a folder, in the order of names
}

// Entry is a name in a folder.
type Entry struct {
	Name string
	Node *Node
}

// NewFolder makes an empty folder with the looks of an implied one.
func NewFolder() *Node { return &Node{Mode: unix.S_IFDIR | 0o755} }

// Type is the part of the mode that says what the node is, as unix.S_IFDIR.
func (n *Node) Type() uint32 { return n.Mode & unix.S_IFMT }

// IsDir says whether n is a folder.
func (n *Node) IsDir() bool { return n.Type() == unix.S_IFDIR }

// IsRegular says whether n is a regular file.
func (n *Node) IsRegular() bool { return n.Type() == unix.S_IFREG }

// NewWhiteout makes a node that deletes what is below.
func NewWhiteout() *Node { return &Node{Mode: unix.S_IFCHR} }

// IsWhiteout says whether n deletes what layers below have under its name.
func (n *Node) IsWhiteout() bool { return n.Type() == unix.S_IFCHR && n.Rdev == 0 }

// Entries lists a folder in the order of names. The slice is n's own.
func (n *Node) Entries() []Entry { return n.entries }

// Lookup finds name in a folder; nil where it is not.
func (n *Node) Lookup(name string) *Node {
	if i, found := n.search(name); found {
		return n.entries[i].Node
	}
	return nil
}

// SetEntries makes entries, one for each name, all that is in the folder. The
// slice is n's own then, and is put in order if it is not.
func (n *Node) SetEntries(entries []Entry) {
	byName := func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(entries, byName) {
		slices.SortFunc(entries, byName)
	}
	n.entries = entries
}

// Set puts child under name, in place of what is there. Adding names in their
// order is cheapest; a Builder takes any order.
func (n *Node) Set(name string, child *Node) {
	i, found := n.search(name)
	if found {
		n.entries[i].Node = child
		return
	}
	n.entries = slices.Insert(n.entries, i, Entry{name, child})
}

// Delete takes name away, if it is there.
func (n *Node) Delete(name string) {
	if i, found := n.search(name); found {
		n.entries = slices.Delete(n.entries, i, i+1)
	}
}

func (n *Node) search(name string) (int, bool) {
	if last := len(n.entries) - 1; last >= 0 && n.entries[last].Name < name {
		return last + 1, false
	}
	return searchEntries(n.entries, name)
}

func searchEntries(entries []Entry, name string) (int, bool) {
	return slices.BinarySearchFunc(entries, name, func(e Entry, name string) int { return cmp.Compare(e.Name, name) })
}
