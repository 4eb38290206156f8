package lcfs

import (
	"berth/image/tree"
)

// fit is the layer as it stands on the tree below: folders that its tar only
// implied look as there, but for those where nothing below shows; and
// whiteouts of nothing go. What it shares with layer does not change.
func fit(layer, below *tree.Node) *tree.Node {
	return tree.Dress(trim(layer, below, false), below)
}

// trim does all but the looks. Hidden says that a folder above hides what is
// below.
func trim(n, below *tree.Node, hidden bool) *tree.Node {
	if below != nil && !below.IsDir() {
		below = nil
	}
	implied := n.Implied && !hidden
	if n.Opaque || hidden {
		below, hidden = nil, true
	}
	var kept []tree.Entry
	changed := implied != n.Implied
	for _, e := range n.Entries() {
		var under *tree.Node
		if below != nil {
			under = below.Lookup(e.Name)
		}
		child := e.Node
		switch {
		case child.IsWhiteout() && under == nil:
			changed = true
			continue
		case child.IsDir():
			child = trim(child, under, hidden)
		}
		changed = changed || child != e.Node
		kept = append(kept, tree.Entry{Name: e.Name, Node: child})
	}
	if !changed {
		return n
	}
	made := &tree.Node{
		Mode: n.Mode, UID: n.UID, GID: n.GID, Sec: n.Sec, Nsec: n.Nsec, Xattrs: n.Xattrs,
		Opaque: n.Opaque, Implied: implied,
	}
	for _, e := range kept {
		made.Set(e.Name, e.Node)
	}
	return made
}

// leansOnBelow says whether fit needs to see the tree below.
func leansOnBelow(n *tree.Node) bool {
	if n.Implied {
		return true
	}
	for _, e := range n.Entries() {
		if e.Node.IsWhiteout() || e.Node.IsDir() && leansOnBelow(e.Node) {
			return true
		}
	}
	return false
}
