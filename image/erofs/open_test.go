package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/erofs"
	"berth/image/tree"
	"berth/image/tree/treetest"
)

// small is a tree with one of each.
func small() *tree.Node {
	root, dir := tree.NewFolder(), tree.NewFolder()
	body := []byte("hello")
	f := &tree.Node{Mode: unix.S_IFREG | 0o644, Size: 5, Body: body, Xattrs: []tree.Xattr{{Name: "trusted.overlay.opaque", Value: []byte("y")}, {Name: "user.x", Value: []byte("1")}}}
	root.Set("dir", dir)
	root.Set("file", f)
	dir.Set("hard", f)
	dir.Set("implied", tree.NewFolder())
	dir.Lookup("implied").Implied, dir.Opaque = true, true
	dir.Set("link", &tree.Node{Mode: unix.S_IFLNK | 0o777, Target: "file"})
	dir.Set("gone", tree.NewWhiteout())
	root.Set("object", &tree.Node{Mode: unix.S_IFREG | 0o600, Size: 1 << 44, Object: tree.Digest{1, 2, 3}})
	root.Set("block", &tree.Node{Mode: unix.S_IFREG, Size: 4096, Body: make([]byte, 4096)})
	return root
}

// seal puts the right checksum and size into the superblock.
func seal(b []byte) []byte {
	if len(b) < 4096 {
		return b
	}
	super := b[1024:4096]
	binary.LittleEndian.PutUint32(super[36:], uint32(len(b)/4096))
	binary.LittleEndian.PutUint32(super[4:], 0)
	binary.LittleEndian.PutUint32(super[4:], ^crc32.Checksum(super, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func read(b []byte) (*tree.Node, error) {
	img, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return img.Tree()
}

// TestFlippedBits: whatever bit is wrong, the image is refused, or is the
// image of another tree; the superblock tells of any wrong bit in it.
func TestFlippedBits(t *testing.T) {
	whole := image(t, small())
	want, err := read(whole)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 8*len(whole); i++ {
		if bytes.Count(whole[i/8:min(i/8+32, len(whole))], []byte{0}) == 32 {
			i += 100 // there is little to see in zeros
			continue
		}
		b := slices.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		got, err := read(b)
		switch {
		case err != nil && !errors.Is(err, errs.Invalid):
			t.Fatalf("bit %d: %v", i, err)
		case err == nil && i/8 >= 1024 && i/8 < 4096:
			t.Fatalf("bit %d of the superblock's block is wrong and nobody sees", i)
		case err == nil && treetest.Equal(got, want) != "":
			if again := image(t, got); len(again) > 2*len(whole) {
				t.Fatalf("bit %d makes an image of %d bytes", i, len(again))
			}
		}
	}
}

func TestCutOff(t *testing.T) {
	whole := image(t, treetest.Layer(3, 100).Root)
	for size := 0; size < len(whole); size += 512 {
		if _, err := read(seal(slices.Clone(whole[:size]))); !errors.Is(err, errs.Invalid) {
			t.Errorf("%d of %d bytes: %v", size, len(whole), err)
		}
		// The size is promised, and not kept.
		img, err := erofs.Open(bytes.NewReader(whole[:size]), int64(len(whole)))
		if err == nil {
			_, err = img.Tree()
		}
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%d of %d bytes, said to be all: %v", size, len(whole), err)
		}
	}
}

// find returns where in an image the inode at path is.
func find(t *testing.T, b []byte, ino uint32) []byte {
	t.Helper()
	for off := 4096; off+64 <= len(b); off += 32 {
		if binary.LittleEndian.Uint32(b[off+20:]) == ino && b[off]&1 == 1 && binary.LittleEndian.Uint16(b[off+4:]) > 0o7777 {
			return b[off:]
		}
	}
	t.Fatalf("no inode %d", ino)
	return nil
}

// TestHostile: images that were made to harm.
func TestHostile(t *testing.T) {
	le := binary.LittleEndian
	nested := tree.NewFolder() // 1: root, 2: a, 3: b, 4: c (file)
	nested.Set("a", tree.NewFolder())
	nested.Lookup("a").Set("b", tree.NewFolder())
	tree.Find(nested, "a/b").Set("c", &tree.Node{Mode: unix.S_IFREG, Size: 3, Body: []byte("abc")})
	nid := func(b []byte, ino uint32) uint64 { return uint64(len(b)-len(find(t, b, ino))) / 32 }
	entries := func(b []byte, ino uint32) []byte { return find(t, b, ino)[64:] } // "." and ".." come first
	for name, spoil := range map[string]func(b []byte){
		"a folder in itself":        func(b []byte) { le.PutUint64(entries(b, 3)[24:], nid(b, 2)); entries(b, 3)[34] = 2 },
		"the root in a folder":      func(b []byte) { le.PutUint64(entries(b, 2)[24:], nid(b, 1)) },
		"a parent that is none":     func(b []byte) { le.PutUint64(entries(b, 3)[12:], nid(b, 3)) },
		"another type":              func(b []byte) { entries(b, 2)[34] = 1 },
		"an inode far away":         func(b []byte) { le.PutUint64(entries(b, 2)[24:], 1<<60) },
		"an inode at minus one":     func(b []byte) { le.PutUint64(entries(b, 2)[24:], ^uint64(0)) },
		"an inode in block 0":       func(b []byte) { le.PutUint64(entries(b, 2)[24:], 32) },
		"an inode that is a name":   func(b []byte) { le.PutUint64(entries(b, 2)[24:], nid(b, 2)+2) },
		"a huge folder":             func(b []byte) { le.PutUint64(find(t, b, 2)[8:], 1<<62) },
		"a folder of negative size": func(b []byte) { le.PutUint64(find(t, b, 2)[8:], 1<<63+5) },
		"a huge folder in blocks":   func(b []byte) { find(t, b, 2)[0] = 1; le.PutUint64(find(t, b, 2)[8:], 1<<40) },
		"a folder in blocks":        func(b []byte) { find(t, b, 2)[0] = 1; le.PutUint32(find(t, b, 2)[16:], 1<<31) },
		"a huge body":               func(b []byte) { le.PutUint64(find(t, b, 4)[8:], 1<<50) },
		"a body of negative size":   func(b []byte) { le.PutUint64(find(t, b, 4)[8:], 1<<63) },
		"a body past the block":     func(b []byte) { le.PutUint64(find(t, b, 4)[8:], 4000) },
		"a folder that is a hole":   func(b []byte) { find(t, b, 2)[0] = 9 },
		"a compressed body":         func(b []byte) { find(t, b, 4)[0] = 7 },
		"a hole that is none":       func(b []byte) { find(t, b, 4)[0] = 9; find(t, b, 4)[16] = 31 },
		"chunks of another size":    func(b []byte) { find(t, b, 4)[0] = 9; find(t, b, 4)[16] = 0 },
		"no links":                  func(b []byte) { le.PutUint32(find(t, b, 4)[44:], 0) },
		"too many links":            func(b []byte) { le.PutUint32(find(t, b, 4)[44:], 1<<31) },
		"a folder's links":          func(b []byte) { le.PutUint32(find(t, b, 2)[44:], 2) },
		"xattrs everywhere":         func(b []byte) { le.PutUint16(find(t, b, 4)[2:], 65535) },
		"empty xattrs":              func(b []byte) { le.PutUint16(find(t, b, 4)[2:], 1) },
		"names out of nowhere":      func(b []byte) { le.PutUint16(entries(b, 2)[8:], 0) },
		"names that overlap":        func(b []byte) { le.PutUint16(entries(b, 2)[20:], 36) },
		"names past the end":        func(b []byte) { le.PutUint16(entries(b, 2)[20:], 60000) },
		"a name with a slash":       func(b []byte) { entries(b, 2)[36+3] = '/' },
		"nanoseconds":               func(b []byte) { le.PutUint32(find(t, b, 4)[40:], 1<<31) },
		"no type":                   func(b []byte) { le.PutUint16(find(t, b, 4)[4:], 0o644) },
		"a root that is a file":     func(b []byte) { le.PutUint16(b[1024+14:], uint16(nid(b, 4))); seal(b) },
		"a root nowhere":            func(b []byte) { le.PutUint16(b[1024+14:], 0xffff); seal(b) },
		"a feature":                 func(b []byte) { b[1024+80] |= 1; seal(b) },
		"blocks of another size":    func(b []byte) { b[1024+12] = 9; seal(b) },
		"metadata elsewhere":        func(b []byte) { b[1024+40] = 1; seal(b) },
	} {
		b := image(t, nested)
		if _, err := read(b); err != nil {
			t.Fatal(err)
		}
		spoil(b)
		if _, err := read(b); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		check(t, b)
	}
}

// TestShared: bytes that several inodes claim do not make a tree larger than
// its image.
func TestShared(t *testing.T) {
	root, dir := tree.NewFolder(), tree.NewFolder()
	root.Set("dir", dir)
	const files = 200
	for i := range files {
		root.Set(fmt.Sprintf("%03d", i), &tree.Node{Mode: unix.S_IFREG, Size: 4096, Body: bytes.Repeat([]byte{byte(i)}, 4096)})
	}
	b := image(t, root)
	for off := 4096; off < len(b); off += 32 {
		if in := b[off:]; len(in) > 64 && in[0] == 1 && binary.LittleEndian.Uint16(in[4:]) == unix.S_IFREG {
			binary.LittleEndian.PutUint64(in[8:], 4096*(files-1))
			binary.LittleEndian.PutUint32(in[16:], uint32(len(b)/4096-files))
		}
	}
	if _, err := read(b); !errors.Is(err, errs.Invalid) {
		t.Errorf("an image that unfolds: %v", err)
	}
}

type broken struct{ io.ReaderAt }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, unix.EIO }

func TestReadFails(t *testing.T) {
	if _, err := erofs.Open(broken{}, 8192); !errors.Is(err, unix.EIO) || errors.Is(err, errs.Invalid) {
		t.Errorf("open: %v", err)
	}
}

// check looks at an image in all ways; it holds for any bytes.
func check(t *testing.T, b []byte) {
	img, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		if !errors.Is(err, errs.Invalid) {
			t.Fatalf("open: %v", err)
		}
		return
	}
	root, err := img.Tree()
	if err != nil {
		if !errors.Is(err, errs.Invalid) {
			t.Fatalf("tree: %v", err)
		}
		return
	}
	again := image(t, root)
	if len(again) > 2*len(b)+8192 {
		t.Fatalf("%d bytes hold a tree of %d", len(b), len(again))
	}
	got, err := read(again)
	if err != nil {
		t.Fatalf("read again: %v", err)
	}
	if diff := treetest.Equal(root, got); diff != "" {
		t.Fatalf("read again: %s", diff)
	}
}

// FuzzOpen reads whatever comes. The superblock is sealed, or nothing behind
// it would ever be looked at.
func FuzzOpen(f *testing.F) {
	f.Add(image(f, tree.NewFolder()))
	f.Add(image(f, small()))
	for seed := range uint64(4) {
		f.Add(image(f, treetest.Layer(seed, 10).Root))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		check(t, b)
		check(t, seal(slices.Clone(b)))
	})
}

// TestNoise spoils images at random places, more than a fuzzer does in the
// time of a test.
func TestNoise(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	whole := image(t, treetest.Layer(2, 30).Root)
	for range 1500 {
		b := slices.Clone(whole)
		for range 1 + r.IntN(4) {
			off := 4096 + r.IntN(len(b)-4096)
			switch r.IntN(3) {
			case 0:
				b[off] = byte(r.Uint32())
			case 1:
				binary.LittleEndian.PutUint16(b[min(off, len(b)-2):], uint16(r.Uint32()))
			default:
				from := 4096 + 32*r.IntN((len(b)-4096)/32)
				copy(b[off&^31:], b[from:min(from+32, len(b))])
			}
		}
		check(t, b)
	}
}
