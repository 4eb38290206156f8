package erofs_test

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/erofs"
	"berth/image/tree"
)

func TestRoundTripSmall(t *testing.T) {
	root := tree.NewFolder()
	root.Set("a", &tree.Node{Mode: unix.S_IFREG | 0o644, Size: 5, Body: []byte("hello"), Sec: 12, Nsec: 7})
	root.Set("o", &tree.Node{Mode: unix.S_IFREG | 0o4755, Size: 1 << 43, Object: tree.Digest{1, 2}, Xattrs: []tree.Xattr{{Name: "trusted.overlay.opaque", Value: []byte("x")}}})
	d := tree.NewFolder()
	d.Opaque = true
	root.Set("d", d)
	d.Set("w", tree.NewWhiteout())
	d.Set("hard", root.Lookup("a"))
	d.Set("l", &tree.Node{Mode: unix.S_IFLNK | 0o777, Target: "x"})
	var b bytes.Buffer
	size, err := erofs.Write(&b, root)
	if err != nil || size != int64(b.Len()) {
		t.Fatal(size, b.Len(), err)
	}
	img, err := erofs.Open(bytes.NewReader(b.Bytes()), size)
	if err != nil {
		t.Fatal(err)
	}
	got, err := img.Tree()
	if err != nil {
		t.Fatal(err)
	}
	if diff := tree.Equal(root, got); diff != "" {
		t.Error(diff)
	}
	n, ok, err := img.Find("d/l")
	if err != nil || !ok || n.Target != "x" {
		t.Error(n, ok, err)
	}
}
