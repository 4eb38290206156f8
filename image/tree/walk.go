package tree

import (
	"bytes"
	"io/fs"
	"slices"
	"strings"
)

// Walk calls fn for root as "." and for all below it under paths like "a/b",
// a folder before what is in it, in the order of names. A fn that returns
// fs.SkipDir for a folder leaves out what is in it; fs.SkipAll ends the walk.
func Walk(root *Node, fn func(path string, n *Node) error) error {
	err := fn(".", root)
	if err == nil {
		err = walk(root, "", fn)
	}
	if err == fs.SkipDir || err == fs.SkipAll { //nolint:errorlint // returned bare
		return nil
	}
	return err
}

func walk(dir *Node, prefix string, fn func(path string, n *Node) error) error {
	for _, e := range dir.entries {
		path := prefix + e.Name
		err := fn(path, e.Node)
		if err == nil && e.Node.IsDir() {
			err = walk(e.Node, path+"/", fn)
		}
		if err != nil && (err != fs.SkipDir || !e.Node.IsDir()) { //nolint:errorlint // returned bare
			return err
		}
	}
	return nil
}

// Find returns the node at path, which is looked up name by name without
// following symbolic links; nil where there is none. Root is "", "." and "/".
func Find(root *Node, path string) *Node {
	n := root
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case n == nil:
			return nil
		case name != "" && name != ".":
			n = n.Lookup(name)
		}
	}
	return n
}

// Objects lists the digests of all bodies that are kept as objects, each
// once, in their order.
func Objects(root *Node) []Digest {
	var found []Digest
	collect(root, &found)
	slices.SortFunc(found, Digest.Compare)
	return slices.Clip(slices.Compact(found))
}

func collect(n *Node, found *[]Digest) {
	for _, e := range n.entries {
		if e.Node.Object != (Digest{}) {
			*found = append(*found, e.Node.Object)
		}
		collect(e.Node, found)
	}
}

// Compare orders digests by their bytes.
func (d Digest) Compare(other Digest) int { return bytes.Compare(d[:], other[:]) }

// block is what a file system gives out at least.
const block = 4096

// Usage is what the tree would take as files and folders of its own, in whole
// blocks, and its inodes. Further names of a file count once.
func Usage(root *Node) (size, inodes int64) {
	links := map[*Node]bool{}
	var count func(n *Node)
	count = func(n *Node) {
		inodes++
		switch {
		case n.IsDir():
			size += block
		case n.IsRegular():
			size += (n.Size + block - 1) / block * block
		}
		for _, e := range n.entries {
			if !e.Node.IsDir() {
				if links[e.Node] {
					continue
				}
				links[e.Node] = true
			}
			count(e.Node)
		}
	}
	count(root)
	return size, inodes
}
