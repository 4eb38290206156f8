package tree

import (
	"cmp"
	"slices"
)

// SortedXattrs is xattrs in the order of names: itself, if it is sorted.
func SortedXattrs(xattrs []Xattr) []Xattr {
	byName := func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(xattrs, byName) {
		return xattrs
	}
	return slices.SortedStableFunc(slices.Values(xattrs), byName)
}
