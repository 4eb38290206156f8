package tree

// crowded is the size from which on a folder that is filled out of order is
// kept by name until all are in.
const crowded = 256

// Builder fills folders in whatever order names come, at the same cost for
// each name. Folders that it was asked about are only to be looked at through
// it until Finish.
type Builder struct {
	open map[*Node]map[string]*Node
}

// NewBuilder makes a Builder with nothing under way.
func NewBuilder() *Builder { return &Builder{open: map[*Node]map[string]*Node{}} }

// Lookup finds name in folder; nil where it is not.
func (b *Builder) Lookup(folder *Node, name string) *Node {
	if names, ok := b.open[folder]; ok {
		return names[name]
	}
	return folder.Lookup(name)
}

// Set puts child under name into folder, in place of what is there.
func (b *Builder) Set(folder *Node, name string, child *Node) {
	names, ok := b.open[folder]
	if !ok {
		i, found := folder.search(name)
		if found || i == len(folder.entries) || len(folder.entries) < crowded {
			folder.Set(name, child)
			return
		}
		names = b.unsort(folder)
	}
	names[name] = child
}

// unsort goes over to keeping folder's entries by name.
func (b *Builder) unsort(folder *Node) map[string]*Node {
	names := make(map[string]*Node, 2*len(folder.entries))
	for _, e := range folder.entries {
		names[e.Name] = e.Node
	}
	folder.entries = nil
	b.open[folder] = names
	return names
}

// Finish puts the names of all folders in order. The Builder can go on with
// more names after it.
func (b *Builder) Finish() {
	for folder, names := range b.open {
		entries := make([]Entry, 0, len(names))
		for name, child := range names {
			entries = append(entries, Entry{name, child})
		}
		folder.SetEntries(entries)
	}
	clear(b.open)
}
