package tree

import "slices"

// Merge is the tree that shows when the layer upper lies on lower. It has no
// whiteouts, and no folder in it is opaque or implied. A nil lower is nothing
// below; else lower is a merged tree itself.
//
// The result shares with both whatever looks the same: it costs no more than
// the folders that upper names, and hard links stay links.
func Merge(lower, upper *Node) *Node {
	if upper == nil {
		return lower
	}
	lower = folder(lower)
	return merge(lower, lower, upper)
}

// folder is n if that is a folder, else nil.
func folder(n *Node) *Node {
	if n == nil || !n.IsDir() {
		return nil
	}
	return n
}

// merge shows upper on the folder below. Looks is the folder at the same path
// of the tree below; it differs from below under an opaque folder, where
// nothing shows through but looks are still taken from there.
func merge(below, looks, upper *Node) *Node {
	if upper.Opaque {
		below = nil
	}
	entries, isBelow := mergeEntries(below, looks, upper)
	switch {
	case isBelow && upper.Implied:
		return below
	case !upper.Opaque && !upper.Implied && sameSlice(entries, upper.entries):
		return upper
	}
	made := *upper
	if upper.Implied {
		made.copyLooks(looks)
	}
	made.Opaque, made.Implied, made.entries = false, false, entries
	return &made
}

func (n *Node) copyLooks(from *Node) {
	if from != nil {
		n.Mode, n.UID, n.GID, n.Sec, n.Nsec, n.Xattrs = from.Mode, from.UID, from.GID, from.Sec, from.Nsec, from.Xattrs
	}
}

func sameSlice(a, b []Entry) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// mergeEntries says also whether all is as in below.
func mergeEntries(below, looks, upper *Node) (_ []Entry, isBelow bool) {
	if below == nil || len(below.entries) == 0 {
		return bare(looks, upper), below != nil && len(upper.entries) == 0
	}
	if len(upper.entries) == 0 {
		return below.entries, true
	}
	made := make([]Entry, 0, len(below.entries)+len(upper.entries))
	rest, isBelow := below.entries, true
	for _, e := range upper.entries {
		i, found := searchEntries(rest, e.Name)
		made = append(made, rest[:i]...)
		rest = rest[i:]
		var under *Node
		if found {
			under, rest = rest[0].Node, rest[1:]
		}
		shown := e.Node
		switch {
		case shown.IsWhiteout():
			shown = nil
		case shown.IsDir():
			shown = merge(folder(under), folder(under), shown)
		}
		if shown != nil {
			made = append(made, Entry{e.Name, shown})
		}
		isBelow = isBelow && shown == under
	}
	if isBelow {
		return below.entries, true
	}
	return append(made, rest...), false
}

// bare is what a folder with nothing below it shows.
func bare(looks, upper *Node) []Entry {
	entries, copied := upper.entries, false
	for i, e := range upper.entries {
		shown := e.Node
		switch {
		case shown.IsWhiteout():
			shown = nil
		case shown.IsDir():
			var from *Node
			if looks != nil {
				from = folder(looks.Lookup(e.Name))
			}
			shown = merge(nil, from, shown)
		}
		if !copied && shown != e.Node {
			entries, copied = append(make([]Entry, 0, len(upper.entries)), upper.entries[:i]...), true
		}
		if copied && shown != nil {
			entries = append(entries, Entry{e.Name, shown})
		}
	}
	return entries
}

// Dress is the layer upper with implied folders looking as they do in lower,
// the merged tree below it. They stay marked as implied.
func Dress(upper, lower *Node) *Node {
	lower = folder(lower)
	if lower == nil {
		return upper
	}
	dressed := upper
	if upper.Implied {
		made := *upper
		made.copyLooks(lower)
		dressed = &made
	}
	entries := upper.entries
	for i, e := range upper.entries {
		if !e.Node.IsDir() {
			continue
		}
		child := Dress(e.Node, lower.Lookup(e.Name))
		if child == e.Node {
			continue
		}
		if sameSlice(entries, upper.entries) {
			entries = slices.Clone(upper.entries)
		}
		entries[i].Node = child
	}
	if sameSlice(entries, upper.entries) {
		return dressed
	}
	if dressed == upper {
		made := *upper
		dressed = &made
	}
	dressed.entries = entries
	return dressed
}
