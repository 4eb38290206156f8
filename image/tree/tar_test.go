package tree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/image/tree/treetest"
)

func written(t *testing.T, m treetest.Made) []byte {
	t.Helper()
	var out bytes.Buffer
	err := tree.WriteTar(t.Context(), &out, m.Root, func(_ string, n *tree.Node) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(m.Objects[n.Object])), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestTarIsTheOverlays: these are the digests of what the overlay driver wrote
// for the same layers as folders on disk.
func TestTarIsTheOverlays(t *testing.T) {
	for seed, want := range []string{
		"605c95d80806e67c06f8351fa1a7900dc230394a716e4ef6d0b3cdd2f70ce5c7",
		"b768a9dae1aaa11c1b272f633dba13dd968bc9fd13f2457c8c3a7494a74fe1c0",
		"ba4725c53a3e5e78de76f7e7442141275adac1b2d4a5f0c01a92027b4a5fb723",
		"87341c0154352d5319e58de0c95d2513802c25c3c03c4f46a7a66124dfe6a358",
		"0e428a1806257dd99bcbf443950439aeb4f63b4beb91410c2dc3ab941e80ecd8",
		"3e053ee082f61647a3166339c486fd645cabb9e2fb32a68c27448b5b05c3bb2c",
	} {
		m := treetest.Layer(uint64(seed), 100)
		if got := fmt.Sprintf("%x", sha256.Sum256(written(t, m))); got != want {
			t.Errorf("layer %d: digest %s, want %s", seed, got, want)
		}
	}
}

func TestTar(t *testing.T) {
	root := tree.NewFolder()
	root.Opaque = true
	file := &tree.Node{Mode: unix.S_IFREG | 0o644, Size: 2, Body: []byte("hi"), Sec: 5, Nsec: 6, Xattrs: []tree.Xattr{{Name: "trusted.overlay.opaque", Value: []byte("y")}}}
	gone, socket, masked := tree.NewWhiteout(), &tree.Node{Mode: unix.S_IFSOCK}, tree.NewFolder()
	gone.Sec = 7
	dir := tree.NewFolder()
	dir.Opaque, dir.Sec, dir.Nsec = true, 8, 9
	masked.Set("inside", file)
	for name, n := range map[string]*tree.Node{"b": file, "c": file, "gone": gone, "sock": socket, "dir": dir, ".wh.x": masked, "dev": {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(3, 4)}} {
		root.Set(name, n)
	}
	dir.Set("link", file)
	var got []string
	r := tar.NewReader(bytes.NewReader(written(t, treetest.Made{Root: root})))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%c %s %s %d.%d %d:%d %q %q", h.Typeflag, h.Name, h.Linkname, h.ModTime.Unix(), h.ModTime.Nanosecond(),
			h.Devmajor, h.Devminor, body, h.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"]))
	}
	want := []string{
		`0 .wh..wh..opq  0.0 0:0 "" ""`,
		`0 b  5.6 0:0 "hi" "y"`,
		`1 c b 5.6 0:0 "" ""`,
		`4 dev  0.0 3:4 "" ""`,
		`5 dir/  8.9 0:0 "" ""`,
		`0 dir/.wh..wh..opq  8.0 0:0 "" ""`,
		`1 dir/link b 5.6 0:0 "" ""`,
		`0 .wh.gone  7.0 0:0 "" ""`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTarOfBrokenBodies(t *testing.T) {
	root := tree.NewFolder()
	n := &tree.Node{Mode: unix.S_IFREG, Size: 600_000}
	root.Set("f", n)
	short := func(string, *tree.Node) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(strings.Repeat("x", 300_000))), nil
	}
	var out bytes.Buffer
	if err := tree.WriteTar(t.Context(), &out, root, short); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&out)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r)
	if err != nil || string(body) != strings.Repeat("x", 300_000)+strings.Repeat("\x00", 300_000) {
		t.Errorf("a file that was cut short: %d bytes, %v", len(body), err)
	}

	n.Object = tree.Digest{1}
	if err := tree.WriteTar(t.Context(), io.Discard, root, short); err == nil {
		t.Error("an object that ends early is taken")
	}
	failure := errs.New(errs.NotFound, "no such object")
	err = tree.WriteTar(t.Context(), io.Discard, root, func(path string, n *tree.Node) (io.ReadCloser, error) {
		if path != "f" || n.Object[0] != 1 {
			t.Errorf("asked for %s", path)
		}
		return nil, failure
	})
	if !errors.Is(err, errs.NotFound) {
		t.Errorf("an object that is missing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tree.WriteTar(ctx, io.Discard, root, short); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
