package erofs_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/erofs"
	"berth/image/tree"
)

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
