package erofs_test

import (
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/erofs"
	"berth/image/tree"
)

// large is a tree of 20,000 files, as an image of a distribution has it.
func large() *tree.Node {
	root := tree.NewFolder()
	for i := range 20_000 {
		dir := root
		for _, name := range []string{fmt.Sprintf("part%d", i%10), fmt.Sprintf("package-%d", i/10%270)} {
			if dir.Lookup(name) == nil {
				dir.Set(name, tree.NewFolder())
			}
			dir = dir.Lookup(name)
		}
		n := &tree.Node{Mode: unix.S_IFREG | 0o644, Size: int64(i) * 7, Sec: 1_700_000_000, Nsec: uint32(i)}
		n.Object = tree.Digest{byte(i), byte(i >> 8), 3}
		dir.Set(fmt.Sprintf("file-number-%d.txt", i), n)
	}
	return root
}

func BenchmarkWrite(b *testing.B) {
	root := large()
	b.ReportAllocs()
	for b.Loop() {
		size, err := erofs.Write(io.Discard, root)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(size)
	}
}

func BenchmarkTree(b *testing.B) {
	img := opened(b, large())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := img.Tree(); err != nil {
			b.Fatal(err)
		}
	}
}
