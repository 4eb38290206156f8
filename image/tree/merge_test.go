package tree_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/tree"
	"berth/image/tree/treetest"
)

func file(body string) *tree.Node {
	return &tree.Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(body)), Body: []byte(body)}
}

func dir(mode uint32, parts ...any) *tree.Node {
	n := tree.NewFolder()
	n.Mode = unix.S_IFDIR | mode
	for i := 0; i < len(parts); i += 2 {
		n.Set(parts[i].(string), parts[i+1].(*tree.Node))
	}
	return n
}

func opaque(n *tree.Node) *tree.Node  { n.Opaque = true; return n }
func implied(n *tree.Node) *tree.Node { n.Implied = true; return n }

var white = tree.NewWhiteout()

func TestMerge(t *testing.T) {
	linked := file("linked")
	tests := map[string]struct{ lower, upper, want *tree.Node }{
		"nothing below": {
			nil,
			implied(dir(0o755, "a", file("1"), "w", white, "d", opaque(dir(0o700, "w", white, "x", linked)), "l", linked)),
			dir(0o755, "a", file("1"), "d", dir(0o700, "x", linked), "l", linked),
		},
		"names on both sides": {
			dir(0o755, "a", file("1"), "c", file("1"), "e", file("1")),
			dir(0o700, "b", file("2"), "c", file("2"), "d", white, "e", white, "f", file("2")),
			dir(0o700, "a", file("1"), "b", file("2"), "c", file("2"), "f", file("2")),
		},
		"folder over file, file over folder": {
			dir(0o755, "f", file("1"), "d", dir(0o755, "x", file("1"))),
			dir(0o755, "f", dir(0o755, "y", file("2")), "d", file("2")),
			dir(0o755, "f", dir(0o755, "y", file("2")), "d", file("2")),
		},
		"opaque in the middle": {
			dir(0o755, "a", dir(0o755, "b", dir(0o755, "x", file("1"), "c", dir(0o711, "z", file("1"))), "y", file("1"))),
			dir(0o755, "a", implied(dir(0o755, "b", opaque(dir(0o700, "c", dir(0o755, "new", file("2"))))))),
			dir(0o755, "a", dir(0o755, "b", dir(0o700, "c", dir(0o755, "new", file("2"))), "y", file("1"))),
		},
		"implied folders look as below, under an opaque one too": {
			dir(0o711, "a", dir(0o700, "b", dir(0o701, "x", file("1")))),
			implied(dir(0o755, "a", opaque(implied(dir(0o755, "b", implied(dir(0o755, "y", file("2"))), "n", implied(dir(0o755))))))),
			dir(0o711, "a", dir(0o700, "b", dir(0o701, "y", file("2")), "n", dir(0o755))),
		},
		"implied over a file": {
			dir(0o755, "a", file("1")),
			dir(0o755, "a", implied(dir(0o755, "x", file("2")))),
			dir(0o755, "a", dir(0o755, "x", file("2"))),
		},
		"opaque root": {
			dir(0o711, "a", file("1")),
			implied(opaque(dir(0o755, "b", file("2")))),
			dir(0o711, "b", file("2")),
		},
		"links stay links": {
			dir(0o755, "d", dir(0o755, "1", linked), "2", linked, "3", linked),
			dir(0o755, "2", white, "d", dir(0o755, "x", file("x"))),
			dir(0o755, "d", dir(0o755, "1", linked, "x", file("x")), "3", linked),
		},
		"nothing above": {dir(0o755, "a", file("1")), dir(0o700), dir(0o700, "a", file("1"))},
	}
	for name, test := range tests {
		if diff := treetest.Equal(tree.Merge(test.lower, test.upper), test.want); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if lower := dir(0o755); tree.Merge(lower, nil) != lower {
		t.Error("no layer makes another tree")
	}
}

// TestMergeShares: what looks the same is the same node.
func TestMergeShares(t *testing.T) {
	lower := dir(0o755, "quiet", dir(0o755, "x", file("1")), "busy", dir(0o755, "x", file("1"), "deep", dir(0o755, "x", file("1"))))
	upper := implied(dir(0o755, "busy", implied(dir(0o755, "y", file("2"), "new", dir(0o755, "z", file("2")))), "quiet", implied(dir(0o755, "nothing", white))))
	got := tree.Merge(lower, upper)
	for path, from := range map[string]*tree.Node{
		"quiet": lower, "quiet/x": lower, "busy/deep": lower, "busy/x": lower, "busy/y": upper, "busy/new": upper,
	} {
		if n := tree.Find(got, path); n == nil || n != tree.Find(from, path) {
			t.Errorf("%s was copied", path)
		}
	}
	if tree.Merge(lower, implied(dir(0o755, "quiet", implied(dir(0o755))))) != lower {
		t.Error("a layer that changes nothing makes another tree")
	}
}

// TestMergeRandom compares with a slow merge by paths, and sees that neither
// side is written to.
func TestMergeRandom(t *testing.T) {
	for seed := range uint64(200) {
		var merged *tree.Node
		for i := range uint64(4) {
			upper := treetest.Layer(10*seed+i, 40).Root
			lowerWas, upperWas := clone(merged), clone(upper)
			got := tree.Merge(merged, upper)
			if diff := treetest.Equal(got, slowMerge(merged, upper)); diff != "" {
				t.Fatalf("seed %d: %s", seed, diff)
			}
			if diff := treetest.Equal(merged, lowerWas) + treetest.Equal(upper, upperWas); diff != "" {
				t.Fatalf("seed %d: merging wrote to a side: %s", seed, diff)
			}
			dressed := tree.Dress(upper, merged)
			if diff := treetest.Equal(got, tree.Merge(merged, dressed)); diff != "" {
				t.Fatalf("seed %d: dressed first, the layer shows another tree: %s", seed, diff)
			}
			if diff := treetest.Equal(upper, upperWas); diff != "" {
				t.Fatalf("seed %d: dressing wrote to the layer: %s", seed, diff)
			}
			if diff := treetest.Equal(got, tree.Merge(merged, treetest.Trim(upper, merged))); diff != "" {
				t.Fatalf("seed %d: trimmed first, the layer shows another tree: %s", seed, diff)
			}
			merged = got
		}
	}
}

// slowMerge is what Merge does, said in another way: a flat list of paths.
func slowMerge(lower, upper *tree.Node) *tree.Node {
	looks := map[string]*tree.Node{}
	flat := map[string]*tree.Node{}
	if lower != nil {
		_ = tree.Walk(lower, func(path string, n *tree.Node) error { flat[path] = n; looks[path] = n; return nil })
	}
	hide := func(path string) {
		for p := range flat {
			if path == "." || len(p) > len(path) && p[:len(path)+1] == path+"/" {
				delete(flat, p)
			}
		}
	}
	_ = tree.Walk(upper, func(path string, n *tree.Node) error {
		under := flat[path]
		if n.Opaque || n.IsWhiteout() || under != nil && (!under.IsDir() || !n.IsDir()) {
			hide(path)
		}
		if n.IsWhiteout() {
			delete(flat, path)
			return nil
		}
		if from := looks[path]; n.Implied && from != nil && from.IsDir() {
			n = from
		}
		flat[path] = n
		return nil
	})
	made := *flat["."]
	root := &made
	root.SetEntries(nil)
	root.Opaque, root.Implied = false, false
	folders := map[string]*tree.Node{".": root}
	for _, path := range byDepth(flat) {
		if path == "." {
			continue
		}
		parent, name := split(path)
		n := flat[path]
		if n.IsDir() {
			copied := *n
			n = &copied
			n.SetEntries(nil)
			n.Opaque, n.Implied = false, false
			folders[path] = n
		}
		folders[parent].Set(name, n)
	}
	return root
}

func clone(n *tree.Node) *tree.Node {
	links := map[*tree.Node]*tree.Node{}
	var copyOf func(n *tree.Node) *tree.Node
	copyOf = func(n *tree.Node) *tree.Node {
		if n == nil || links[n] != nil {
			return links[n]
		}
		made := *n
		made.SetEntries(nil)
		for _, e := range n.Entries() {
			made.Set(e.Name, copyOf(e.Node))
		}
		links[n] = &made
		return &made
	}
	return copyOf(n)
}

func TestDress(t *testing.T) {
	lower := dir(0o711, "a", dir(0o700, "b", dir(0o701)), "file", file("1"))
	lower.Lookup("a").UID, lower.Lookup("a").Xattrs = 7, []tree.Xattr{{Name: "user.x", Value: []byte("1")}}
	upper := implied(dir(0o755,
		"a", implied(dir(0o755, "b", dir(0o755), "new", implied(dir(0o755)))),
		"file", implied(dir(0o755)),
		"own", dir(0o750, "x", file("1"))))
	want := implied(dir(0o711,
		"a", implied(dir(0o700, "b", dir(0o755), "new", implied(dir(0o755)))),
		"file", implied(dir(0o755)),
		"own", dir(0o750, "x", file("1"))))
	want.Lookup("a").UID, want.Lookup("a").Xattrs = 7, lower.Lookup("a").Xattrs
	got := tree.Dress(upper, lower)
	if diff := treetest.Equal(got, want); diff != "" {
		t.Error(diff)
	}
	if got.Lookup("own") != upper.Lookup("own") {
		t.Error("a folder with nothing implied in it was copied")
	}
	if tree.Dress(upper, nil) != upper {
		t.Error("with nothing below, the layer was copied")
	}
}

// BenchmarkMerge lays 50 layers of 400 files on each other.
func BenchmarkMerge(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	layers := make([]*tree.Node, 50)
	for i := range layers {
		layers[i] = tree.NewFolder()
		for range 400 {
			n := layers[i]
			for _, name := range []string{fmt.Sprintf("part%d", r.IntN(10)), fmt.Sprintf("package-%d", r.IntN(270))} {
				if n.Lookup(name) == nil {
					n.Set(name, implied(tree.NewFolder()))
				}
				n = n.Lookup(name)
			}
			n.Set(fmt.Sprintf("file-number-%d.txt", r.IntN(20_000)), file("x"))
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		var merged *tree.Node
		for _, layer := range layers {
			merged = tree.Merge(merged, layer)
		}
	}
}
