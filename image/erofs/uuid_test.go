package erofs_test

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/erofs"
	"berth/image/tree"
)

// Images that differ in anything have UUIDs that differ; the same tree has the
// same.
func TestUUID(t *testing.T) {
	uuid := func(change func(*tree.Node)) string {
		root := tree.NewFolder()
		n := &tree.Node{Mode: unix.S_IFREG | 0o644, Size: 1000}
		n.Object[0] = 1
		root.Set("f", n)
		change(n)
		var b bytes.Buffer
		if _, err := erofs.Write(&b, root); err != nil {
			t.Fatal(err)
		}
		return string(b.Bytes()[1024+48:][:16])
	}
	same := func(*tree.Node) {}
	if a := uuid(same); a != uuid(same) || a == string(make([]byte, 16)) {
		t.Errorf("%x and %x of one tree", a, uuid(same))
	}
	met := map[string]bool{}
	for i, change := range []func(*tree.Node){
		same,
		func(n *tree.Node) { n.Size++ },
		func(n *tree.Node) { n.Object[31] = 1 },
		func(n *tree.Node) { n.Nsec = 1 },
		func(n *tree.Node) { n.Object, n.Size, n.Body = tree.Digest{}, 3, []byte("abc") },
		func(n *tree.Node) { n.Object, n.Size, n.Body = tree.Digest{}, 3, []byte("abd") },
	} {
		id := uuid(change)
		if met[id] {
			t.Errorf("change %d gives the UUID of another tree", i)
		}
		met[id] = true
	}
}
