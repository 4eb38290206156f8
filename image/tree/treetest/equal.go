package treetest

import (
	"bytes"
	"fmt"
	"slices"

	"berth/image/tree"
)

// Equal compares two trees in all there is to them, which names are links to
// one file too. It returns the first difference in words, or "".
func Equal(a, b *tree.Node) (diff string) {
	c := equality{aToB: map[*tree.Node]*tree.Node{}, bToA: map[*tree.Node]*tree.Node{}}
	return c.nodes(".", a, b)
}

type equality struct {
	aToB, bToA map[*tree.Node]*tree.Node // of what is no folder
}

func (c *equality) nodes(path string, a, b *tree.Node) string {
	if a == nil || b == nil {
		if a != b {
			return fmt.Sprintf("%s: only in one", path)
		}
		return ""
	}
	if !a.IsDir() {
		if c.aToB[a] == b && c.bToA[b] == a {
			return ""
		}
		if c.aToB[a] != nil || c.bToA[b] != nil {
			return fmt.Sprintf("%s: links differ", path)
		}
		c.aToB[a], c.bToA[b] = b, a
	}
	if what := looks(a, b); what != "" {
		return path + ": " + what
	}
	return c.entries(path, a.Entries(), b.Entries())
}

func (c *equality) entries(path string, a, b []tree.Entry) string {
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(b) || i < len(a) && a[i].Name < b[i].Name:
			return fmt.Sprintf("%s/%s: only in the first", path, a[i].Name)
		case i >= len(a) || a[i].Name > b[i].Name:
			return fmt.Sprintf("%s/%s: only in the second", path, b[i].Name)
		}
		if what := c.nodes(path+"/"+a[i].Name, a[i].Node, b[i].Node); what != "" {
			return what
		}
	}
	return ""
}

func looks(a, b *tree.Node) string {
	for _, f := range []struct {
		name string
		a, b any
	}{
		{"mode", a.Mode, b.Mode},
		{"owner", a.UID, b.UID},
		{"group", a.GID, b.GID},
		{"size", a.Size, b.Size},
		{"seconds", a.Sec, b.Sec},
		{"nanoseconds", a.Nsec, b.Nsec},
		{"device", a.Rdev, b.Rdev},
		{"target", a.Target, b.Target},
		{"object", a.Object, b.Object},
		{"opaque", a.Opaque, b.Opaque},
		{"implied", a.Implied, b.Implied},
	} {
		if f.a != f.b {
			return fmt.Sprintf("%s is %v and %v", f.name, f.a, f.b)
		}
	}
	if !bytes.Equal(a.Body, b.Body) {
		return fmt.Sprintf("bodies of %d and %d bytes differ", len(a.Body), len(b.Body))
	}
	if x, y := tree.SortedXattrs(a.Xattrs), tree.SortedXattrs(b.Xattrs); !slices.EqualFunc(x, y, func(x, y tree.Xattr) bool {
		return x.Name == y.Name && bytes.Equal(x.Value, y.Value)
	}) {
		return fmt.Sprintf("xattrs are %q and %q", x, y)
	}
	return ""
}
