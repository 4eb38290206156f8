package tree_test

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/tree"
	"berth/image/tree/treetest"
	"berth/spec"
)

func split(p string) (parent, name string) { return path.Dir(p), path.Base(p) }

func byDepth(flat map[string]*tree.Node) []string {
	return slices.SortedFunc(maps.Keys(flat), func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(a, "/"), strings.Count(b, "/")), cmp.Compare(a, b))
	})
}

func TestChanges(t *testing.T) {
	lower := dir(0o755,
		"etc", dir(0o755, "passwd", file("1"), "hosts", file("1")),
		"old", dir(0o755, "x", file("1")), "swap", dir(0o755, "x", file("1"), "sub", dir(0o755, "y", file("1"))),
		"kind", file("1"), "turned", dir(0o755, "x", file("1")), "quiet", file("1"))
	upper := dir(0o755,
		"etc", dir(0o755, "passwd", file("2"), "hosts", white, "never", white),
		"old", white, "swap", opaque(dir(0o755, "new", file("2"), "sub", dir(0o755))),
		"kind", dir(0o755, "x", file("2")), "turned", file("2"), "new", dir(0o755, "x", file("2")))
	want := []spec.Change{
		{Kind: "C", Path: "/etc"},
		{Kind: "D", Path: "/etc/hosts"},
		{Kind: "C", Path: "/etc/passwd"},
		{Kind: "C", Path: "/kind"},
		{Kind: "A", Path: "/kind/x"},
		{Kind: "A", Path: "/new"},
		{Kind: "A", Path: "/new/x"},
		{Kind: "D", Path: "/old"},
		{Kind: "C", Path: "/swap"},
		{Kind: "A", Path: "/swap/new"},
		{Kind: "C", Path: "/swap/sub"},
		{Kind: "D", Path: "/swap/sub/y"},
		{Kind: "D", Path: "/swap/x"},
		{Kind: "C", Path: "/turned"},
	}
	if got := tree.Changes(lower, upper); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := tree.Changes(lower, opaque(dir(0o755, "quiet", file("2")))); len(got) != 6 || got[3] != (spec.Change{Kind: "C", Path: "/quiet"}) {
		t.Errorf("under an opaque root: %v", got)
	}
	if got := tree.Changes(nil, dir(0o755, "a", white, "b", file("1"))); fmt.Sprint(got) != "[{A /b}]" {
		t.Errorf("on nothing: %v", got)
	}
	if got := tree.Changes(lower, nil); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

func TestBuilder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 30 {
		want, got, b := tree.NewFolder(), tree.NewFolder(), tree.NewBuilder()
		for i := range 2000 {
			name := fmt.Sprint(r.IntN(1500))
			switch n := file(fmt.Sprint(i)); r.IntN(10) {
			case 0:
				if want.Lookup(name) != b.Lookup(got, name) {
					t.Fatalf("%s differs", name)
				}
			case 1:
				if r.IntN(50) == 0 {
					b.Finish()
				}
			default:
				want.Set(name, n)
				b.Set(got, name, n)
			}
		}
		b.Finish()
		if diff := treetest.Equal(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestSetEntries(t *testing.T) {
	n := tree.NewFolder()
	a, b := file("a"), file("b")
	n.SetEntries([]tree.Entry{{Name: "b", Node: b}, {Name: "a", Node: a}})
	if n.Lookup("a") != a || n.Lookup("b") != b || n.Entries()[0].Name != "a" {
		t.Errorf("entries %v", n.Entries())
	}
}

func TestWalk(t *testing.T) {
	root := dir(0o755, "a", dir(0o755, "x", file("1"), "y", dir(0o755, "z", file("1"))), "b", file("1"), "c", file("1"))
	seen := func(stop map[string]error) string {
		var paths []string
		err := tree.Walk(root, func(path string, n *tree.Node) error {
			if n != tree.Find(root, path) {
				t.Errorf("%s is another node", path)
			}
			paths = append(paths, path)
			return stop[path]
		})
		if err != nil {
			paths = append(paths, err.Error())
		}
		return strings.Join(paths, " ")
	}
	broken := errors.New("broken")
	for _, test := range []struct {
		stop map[string]error
		want string
	}{
		{nil, ". a a/x a/y a/y/z b c"},
		{map[string]error{"a/y": fs.SkipDir}, ". a a/x a/y b c"},
		{map[string]error{"a": fs.SkipDir}, ". a b c"},
		{map[string]error{".": fs.SkipDir}, "."},
		{map[string]error{"a/y": fs.SkipAll}, ". a a/x a/y"},
		{map[string]error{"a/y/z": broken}, ". a a/x a/y a/y/z broken"},
	} {
		if got := seen(test.stop); got != test.want {
			t.Errorf("walked %s, want %s", got, test.want)
		}
	}
}

func TestFind(t *testing.T) {
	root := dir(0o755, "a", dir(0o755, "b", file("1")), "f", file("2"))
	for path, want := range map[string]*tree.Node{
		"": root, ".": root, "/": root, "a/b": root.Lookup("a").Lookup("b"), "/a//./b": root.Lookup("a").Lookup("b"),
		"a/c": nil, "f/x": nil, "x/y/z": nil, "f": root.Lookup("f"),
	} {
		if got := tree.Find(root, path); got != want {
			t.Errorf("%q leads to %v", path, got)
		}
	}
}

func TestObjectsAndUsage(t *testing.T) {
	one, two := &tree.Node{Mode: unix.S_IFREG, Size: 4097, Object: tree.Digest{1}}, &tree.Node{Mode: unix.S_IFREG, Size: 1, Object: tree.Digest{0, 2}}
	root := dir(0o755, "a", one, "b", dir(0o755, "c", one, "d", two, "e", white), "s", &tree.Node{Mode: unix.S_IFREG, Size: 4096, Object: tree.Digest{1}})
	if got := tree.Objects(root); !slices.Equal(got, []tree.Digest{{0, 2}, {1}}) {
		t.Errorf("objects %v", got)
	}
	if size, inodes := tree.Usage(root); size != 2*4096+8192+4096+4096 || inodes != 6 {
		t.Errorf("usage %d bytes, %d inodes", size, inodes)
	}
}

func TestEqual(t *testing.T) {
	base := func() *tree.Node {
		f := file("1")
		f.Xattrs = []tree.Xattr{{Name: "b"}, {Name: "a", Value: []byte("x")}}
		return dir(0o755, "d", dir(0o755, "x", file("1")), "f", f, "g", f)
	}
	other := base()
	slices.Reverse(other.Lookup("f").Xattrs)
	if diff := treetest.Equal(base(), other); diff != "" {
		t.Errorf("xattrs in another order: %s", diff)
	}
	for want, change := range map[string]func(n *tree.Node){
		"./d/x: mode":                func(n *tree.Node) { tree.Find(n, "d/x").Mode++ },
		"./d/y: only in the second":  func(n *tree.Node) { n.Lookup("d").Set("y", file("")) },
		"./g: only in the first":     func(n *tree.Node) { n.Delete("g") },
		"./g: links differ":          func(n *tree.Node) { n.Set("g", base().Lookup("f")) },
		"./f: xattrs are":            func(n *tree.Node) { n.Lookup("f").Xattrs[0].Value = []byte("y") },
		"./d/x: bodies of":           func(n *tree.Node) { tree.Find(n, "d/x").Body = []byte("2") },
		".: opaque is false and tru": func(n *tree.Node) { n.Opaque = true },
	} {
		other := base()
		change(other)
		if diff := treetest.Equal(base(), other); !strings.HasPrefix(diff, want) {
			t.Errorf("difference %q, want %q", diff, want)
		}
	}
	split := base()
	split.Set("g", base().Lookup("f"))
	if diff := treetest.Equal(split, base()); diff != "./g: links differ" {
		t.Errorf("difference %q", diff)
	}
	for seed := range uint64(20) {
		if diff := treetest.Equal(treetest.Layer(seed, 60).Root, treetest.Layer(seed, 60).Root); diff != "" {
			t.Error(diff)
		}
	}
}

// BenchmarkBuilder puts 100,000 names in no order into one folder.
func BenchmarkBuilder(b *testing.B) {
	names := rand.New(rand.NewPCG(5, 6)).Perm(100_000)
	n := file("")
	for b.Loop() {
		dir, builder := tree.NewFolder(), tree.NewBuilder()
		for _, i := range names {
			builder.Set(dir, fmt.Sprint("name-", i), n)
		}
		builder.Finish()
	}
}
