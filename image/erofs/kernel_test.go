package erofs_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/tree"
	"berth/image/tree/treetest"
)

// TestKernel: the kernel sees in an image what was written.
func TestKernel(t *testing.T) {
	t.Run("limits", func(t *testing.T) { sameInKernel(t, limits()) })
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("random", seed), func(t *testing.T) { sameInKernel(t, treetest.Layer(seed, 200).Root) })
	}
}

func sameInKernel(t *testing.T, root *tree.Node) {
	t.Helper()
	seen := look(t, mountImage(t, root), false)
	if diff := treetest.Equal(root, seen); diff != "" {
		t.Error(diff)
	}
}

// limits is a tree with everything that is long, large or odd.
func limits() *tree.Node {
	root := tree.NewFolder()
	root.Sec, root.Nsec, root.UID, root.GID = -1, 999_999_999, 0xFFFFFFFE, 0xFFFFFFFE
	long := strings.Repeat("n", 255)
	big := make([]byte, 10<<20+1)
	for i := range big {
		big[i] = byte(i >> 9)
	}
	put := func(name string, n *tree.Node, xattrs ...tree.Xattr) *tree.Node {
		n.Xattrs = tree.SortedXattrs(xattrs)
		root.Set(name, n)
		return n
	}
	regular := func(body []byte) *tree.Node {
		return &tree.Node{Mode: unix.S_IFREG | 0o6755, Size: int64(len(body)), Body: body}
	}
	put(long, regular(big))
	for size := range 6 {
		put(fmt.Sprint("body-", size), regular(big[:4096-64-3+size]))
		put(fmt.Sprint("block-", size), regular(big[:8192-3+size]))
		put(fmt.Sprint("link-", size), &tree.Node{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("l", 4095-64+size)})
	}
	put("link", &tree.Node{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("/", 4095)})
	put("empty", regular(nil))
	put("huge", &tree.Node{Mode: unix.S_IFREG | 0o600, Size: 1<<62 + 1})
	put("huge-object", &tree.Node{Mode: unix.S_IFREG | 0o600, Size: 1<<43 + 1, Object: tree.Digest{9}})
	put("empty-object", &tree.Node{Mode: unix.S_IFREG | 0o600, Object: tree.Digest{0xe3, 0xb0}})
	put("old", &tree.Node{Mode: unix.S_IFREG, Sec: -1 << 40, Nsec: 1})
	put("device", &tree.Node{Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(4095, 1<<20-1)})
	put("disk", &tree.Node{Mode: unix.S_IFBLK | 0o660, Rdev: unix.Mkdev(259, 300)})
	put("zero", &tree.Node{Mode: unix.S_IFBLK})
	put("xattr", regular([]byte("body")), tree.Xattr{Name: "user.big", Value: big[:65535]}, tree.Xattr{Name: "user.empty", Value: nil},
		tree.Xattr{Name: "trusted.big", Value: big[1:65536]}, tree.Xattr{Name: "user." + strings.Repeat("k", 250), Value: []byte("v")})
	put("xattr-link", &tree.Node{Mode: unix.S_IFLNK | 0o777, Target: "short"}, tree.Xattr{Name: "trusted.big", Value: big[:5000]})
	put("xattr-folder", tree.NewFolder(), tree.Xattr{Name: "trusted.big", Value: big[:4000]},
		tree.Xattr{Name: "system.posix_acl_default", Value: treetest.ACL(0o755, 7)}, tree.Xattr{Name: "system.posix_acl_access", Value: treetest.ACL(0o755, 7)}).
		Set("x", regular(nil))
	folder := tree.NewFolder()
	for i := range 1000 {
		folder.Set(fmt.Sprintf("%0250d", i), root.Lookup("zero"))
	}
	put("folder", folder)
	deep := put("deep", tree.NewFolder())
	for range 500 {
		next := tree.NewFolder()
		deep.Set("d", next)
		deep = next
	}
	return root
}

// TestOverlay: layers as images, and bodies as objects under them, show the
// merged tree; the merged image shows it too.
func TestOverlay(t *testing.T) {
	for seed := range uint64(8) {
		objects := t.TempDir()
		var merged *tree.Node
		var stack []string
		for i := range uint64(4) {
			m := treetest.Layer(100+10*seed+i, 80)
			m.Root.Opaque = false // of a layer's root, the kernel does not look at it
			keep(t, objects, m)
			layer := treetest.Trim(tree.Dress(m.Root, merged), merged)
			stack = append(stack, mountImage(t, layer))
			merged = tree.Merge(merged, m.Root)
		}
		slices.Reverse(stack)
		want := filled(t, objects, merged)
		if diff := treetest.Equal(want, look(t, mountOverlay(t, stack, objects), true)); diff != "" {
			t.Errorf("seed %d: layers: %s", seed, diff)
		}
		if diff := treetest.Equal(want, look(t, mountOverlay(t, []string{mountImage(t, merged)}, objects), true)); diff != "" {
			t.Errorf("seed %d: merged: %s", seed, diff)
		}
	}
}

func objectPath(dir string, d tree.Digest) string {
	name := hex.EncodeToString(d[:])
	return filepath.Join(dir, name[:2], name[2:])
}

func keep(t *testing.T, dir string, m treetest.Made) {
	for d, body := range m.Objects {
		path := objectPath(dir, d)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// filled is the tree with its objects as bodies.
func filled(t *testing.T, objects string, n *tree.Node) *tree.Node {
	links := map[*tree.Node]*tree.Node{}
	var fill func(n *tree.Node) *tree.Node
	fill = func(n *tree.Node) *tree.Node {
		if links[n] != nil {
			return links[n]
		}
		made := *n
		made.SetEntries(nil)
		if n.Object != (tree.Digest{}) {
			body, err := os.ReadFile(objectPath(objects, n.Object))
			if err != nil {
				t.Fatal(err)
			}
			made.Body, made.Object = body, tree.Digest{}
		}
		for _, e := range n.Entries() {
			made.Set(e.Name, fill(e.Node))
		}
		links[n] = &made
		return &made
	}
	return fill(n)
}

func TestCrowdedFolder(t *testing.T) {
	root, dir, b := tree.NewFolder(), tree.NewFolder(), tree.NewBuilder()
	root.Set("dir", dir)
	for i := range 100_000 {
		b.Set(dir, fmt.Sprintf("name-%d", i*7919%100_000), &tree.Node{Mode: unix.S_IFREG | 0o644, Size: int64(i + 1), Object: tree.Digest{1, byte(i), byte(i >> 8), byte(i >> 16)}})
	}
	b.Finish()
	img := opened(t, root)
	got, err := img.Tree()
	if err != nil {
		t.Fatal(err)
	}
	if diff := treetest.Equal(root, got); diff != "" {
		t.Error(diff)
	}
	mounted := filepath.Join(mountImage(t, root), "dir")
	names, err := os.ReadDir(mounted)
	if err != nil || len(names) != 100_000 {
		t.Fatalf("the kernel lists %d entries, %v", len(names), err)
	}
	for i := 0; i < 100_000; i += 997 {
		name := fmt.Sprint("name-", i)
		st, err := os.Lstat(filepath.Join(mounted, name))
		if err != nil || st.Size() != dir.Lookup(name).Size {
			t.Fatal(name, err)
		}
	}
}
