package erofs_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/erofs"
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
	if diff := tree.Equal(root, seen); diff != "" {
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
			layer := tree.Trim(tree.Dress(m.Root, merged), merged)
			stack = append(stack, mountImage(t, layer))
			merged = tree.Merge(merged, m.Root)
		}
		slices.Reverse(stack)
		want := filled(t, objects, merged)
		if diff := tree.Equal(want, look(t, mountOverlay(t, stack, objects), true)); diff != "" {
			t.Errorf("seed %d: layers: %s", seed, diff)
		}
		if diff := tree.Equal(want, look(t, mountOverlay(t, []string{mountImage(t, merged)}, objects), true)); diff != "" {
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
	if diff := tree.Equal(root, got); diff != "" {
		t.Error(diff)
	}
	list, err := img.List("dir")
	if err != nil || len(list) != 100_000 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	for i, e := range list {
		if e.Name != dir.Entries()[i].Name || e.Node.Size != dir.Entries()[i].Node.Size {
			t.Fatalf("entry %d is %s of %d bytes", i, e.Name, e.Node.Size)
		}
	}
	for i := 0; i < 100_000; i += 997 {
		name := fmt.Sprint("name-", i)
		n, found, err := img.Find("dir/" + name)
		if err != nil || !found || n.Size != dir.Lookup(name).Size {
			t.Fatal(name, found, err)
		}
		if _, found, err := img.Find("dir/" + name + "x"); found || err != nil {
			t.Fatal(found, err)
		}
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

// mountImage writes root as an image and mounts it.
func mountImage(t *testing.T, root *tree.Node) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.Write(f, root); err != nil {
		t.Fatal(err)
	}
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOSYS) {
		t.Skip("this kernel has no EROFS, or cannot mount by descriptors")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "source", path)
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if errors.Is(err, unix.ENOTBLK) {
		t.Skip("this kernel mounts EROFS only from devices")
	}
	if err != nil {
		t.Fatal(err, messages(fs))
	}
	return attach(t, fs)
}

func mountOverlay(t *testing.T, layers []string, objects string) string {
	t.Helper()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	for _, layer := range layers {
		err = errors.Join(err, unix.FsconfigSetString(fs, "lowerdir+", layer))
	}
	err = errors.Join(err, unix.FsconfigSetString(fs, "datadir+", objects), unix.FsconfigSetString(fs, "metacopy", "on"))
	if errors.Is(err, unix.EINVAL) {
		t.Skip("this kernel has no data-only layers")
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		t.Fatal(err, messages(fs))
	}
	return attach(t, fs)
}

func attach(t *testing.T, fs int) string {
	t.Helper()
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mount)
	target := t.TempDir()
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return target
}

// messages are what the kernel says of a mount that failed.
func messages(fs int) string {
	var b [4096]byte
	n, _ := unix.Read(fs, b[:])
	return string(b[:max(n, 0)])
}

// look reads a mounted tree back. Through an overlay, there are no words of
// its own in the xattrs, and all bodies are there.
func look(t *testing.T, root string, overlay bool) *tree.Node {
	t.Helper()
	links := map[[2]uint64]*tree.Node{} // by device and inode
	count := map[*tree.Node]uint64{}
	want := map[*tree.Node]uint64{}
	var visit func(dir int, name string, path string) *tree.Node
	visit = func(dir int, name string, path string) *tree.Node {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(path, err)
		}
		if n := links[[2]uint64{st.Dev, st.Ino}]; n != nil {
			count[n]++
			return n
		}
		n := &tree.Node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
		at := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
		n.Xattrs = xattrs(t, at)
		if !overlay {
			unescape(t, n)
		}
		if st.Nlink > 1 && !n.IsDir() {
			links[[2]uint64{st.Dev, st.Ino}], want[n], count[n] = n, st.Nlink, 1
		}
		switch n.Type() {
		case unix.S_IFDIR:
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(path, err)
			}
			f := os.NewFile(uintptr(fd), path)
			defer f.Close()
			names, err := f.Readdirnames(-1)
			if err != nil {
				t.Fatal(path, err)
			}
			for _, name := range names {
				n.Set(name, visit(fd, name, path+"/"+name))
			}
			if subfolders := countFolders(n); !overlay && st.Nlink != subfolders+2 {
				t.Errorf("%s has %d links", path, st.Nlink)
			}
		case unix.S_IFREG:
			n.Size = st.Size
			if n.Object == (tree.Digest{}) && n.Size > 0 && n.Size < 1<<30 {
				body, err := os.ReadFile(at)
				if err != nil {
					t.Fatal(path, err)
				}
				n.Body = body
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(at)
			if err != nil || int64(len(target)) != st.Size {
				t.Fatal(path, len(target), st.Size, err)
			}
			n.Target = target
		case unix.S_IFCHR, unix.S_IFBLK:
			n.Rdev = st.Rdev
		}
		return n
	}
	parent, err := os.Open(filepath.Dir(root))
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	n := visit(int(parent.Fd()), filepath.Base(root), ".")
	for n, links := range want {
		if !overlay && count[n] != links {
			t.Errorf("a file has %d names and says %d", count[n], links)
		}
	}
	return n
}

func countFolders(n *tree.Node) (count uint64) {
	for _, e := range n.Entries() {
		if e.Node.IsDir() {
			count++
		}
	}
	return count
}

func xattrs(t *testing.T, path string) (list []tree.Xattr) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(path, err)
	}
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			t.Fatal(path, string(name), err)
		}
		list = append(list, tree.Xattr{Name: string(name), Value: value[:n]})
	}
	return tree.SortedXattrs(list)
}

// unescape takes an image's own words out of xattrs that were read without an
// overlay.
func unescape(t *testing.T, n *tree.Node) {
	var kept []tree.Xattr
	for _, x := range n.Xattrs {
		switch rest, escaped := strings.CutPrefix(x.Name, "trusted.overlay.overlay."); {
		case escaped:
			kept = append(kept, tree.Xattr{Name: "trusted.overlay." + rest, Value: x.Value})
		case x.Name == "trusted.overlay.opaque":
			n.Opaque = string(x.Value) == "y"
		case x.Name == "trusted.overlay.berth.implied":
			n.Implied = true
		case x.Name == "trusted.overlay.metacopy":
		case x.Name == "trusted.overlay.redirect":
			if _, err := hex.Decode(n.Object[:], []byte(strings.ReplaceAll(string(x.Value), "/", ""))); err != nil {
				t.Fatal(err)
			}
		default:
			kept = append(kept, x)
		}
	}
	n.Xattrs = kept
}
