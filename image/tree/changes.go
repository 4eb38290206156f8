package tree

import (
	"cmp"
	"slices"

	"berth/spec"
)

// Changes lists what the layer upper does to lower, the merged tree below it:
// A for what is new, C for what is there in another way, D for what is gone.
// Whatever upper names has changed, so a folder in which something changed has
// changed itself; what was in a deleted folder is not listed.
func Changes(lower, upper *Node) []spec.Change {
	var c comparison
	if upper != nil {
		c.folder("/", folder(lower), upper, upper.Opaque)
	}
	slices.SortFunc(c.found, func(a, b spec.Change) int { return cmp.Compare(a.Path, b.Path) })
	return c.found
}

type comparison struct {
	found []spec.Change
}

func (c *comparison) add(kind, path string) {
	c.found = append(c.found, spec.Change{Kind: kind, Path: path})
}

// folder compares what is in a folder. Cut says that nothing of below shows
// through.
func (c *comparison) folder(prefix string, below, upper *Node, cut bool) {
	for _, e := range upper.entries {
		var under *Node
		if below != nil {
			under = below.Lookup(e.Name)
		}
		path := prefix + e.Name
		switch {
		case e.Node.IsWhiteout():
			if under != nil {
				c.add("D", path)
			}
			continue
		case under != nil:
			c.add("C", path)
		default:
			c.add("A", path)
		}
		if e.Node.IsDir() {
			c.folder(path+"/", folder(under), e.Node, cut || e.Node.Opaque)
		}
	}
	if !cut || below == nil {
		return
	}
	for _, e := range below.entries {
		if upper.Lookup(e.Name) == nil {
			c.add("D", prefix+e.Name)
		}
	}
}
