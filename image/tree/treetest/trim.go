package treetest

import "berth/image/tree"

// Trim is the layer upper without whiteouts that hide nothing in lower, the
// merged tree below it. In folders that only this layer has, the kernel would
// list their names.
func Trim(upper, lower *tree.Node) *tree.Node {
	if lower == nil || !lower.IsDir() || upper.Opaque {
		lower = tree.NewFolder()
	}
	made := *upper
	var kept []tree.Entry
	for _, e := range upper.Entries() {
		below := lower.Lookup(e.Name)
		switch {
		case e.Node.IsDir():
			kept = append(kept, tree.Entry{Name: e.Name, Node: Trim(e.Node, below)})
		case !e.Node.IsWhiteout() || below != nil:
			kept = append(kept, e)
		}
	}
	made.SetEntries(kept)
	return &made
}
