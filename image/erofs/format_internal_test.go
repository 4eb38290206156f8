package erofs

import (
	"testing"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

func TestXXH32(t *testing.T) {
	for _, test := range []struct {
		s    string
		seed uint32
		want uint32
	}{
		{"", 0, 0x02CC5D05},
		{"a", 0, 0x550D7456},
		{"abc", 0, 0x32D153FF},
		{"Nobody inspects the spammish repetition", 0, 0xE2293B2F},
	} {
		if got := xxh32(test.s, test.seed); got != test.want {
			t.Errorf("hash of %q is %#x, want %#x", test.s, got, test.want)
		}
		if xxh32([]byte(test.s), test.seed) != xxh32(test.s, test.seed) {
			t.Errorf("hash of %q depends on its type", test.s)
		}
	}
}

func TestDevices(t *testing.T) {
	for _, dev := range []uint64{0, unix.Mkdev(1, 3), unix.Mkdev(4095, 1<<20-1), unix.Mkdev(8, 255), unix.Mkdev(8, 256)} {
		disk, ok := encodeDevice(dev)
		if !ok || decodeDevice(disk) != dev {
			t.Errorf("device %#x became %#x, and %#x", dev, disk, decodeDevice(disk))
		}
	}
	if disk, _ := encodeDevice(unix.Mkdev(0xabc, 0xdef12)); disk != 0xdefabc12 {
		t.Errorf("device on disk is %#x", disk)
	}
	for _, dev := range []uint64{unix.Mkdev(4096, 0), unix.Mkdev(0, 1<<20)} {
		if _, ok := encodeDevice(dev); ok {
			t.Errorf("device %#x is taken", dev)
		}
	}
}

func TestXattrNames(t *testing.T) {
	for name, want := range map[string]uint8{
		"user.x": 1, "user.": 1, accessACL: 2, defaultACL: 3, "trusted.overlay.opaque": 4, "security.selinux": 6,
		"system.posix_acl_accessory": 0, "btrfs.compression": 0, "lustre.lov": 0, "x": 0,
	} {
		index, suffix := splitXattr(name)
		if index != want {
			t.Errorf("%s has number %d", name, index)
		}
		if back, ok := joinXattr(index, suffix); !ok || back != name {
			t.Errorf("%s came back as %q", name, back)
		}
	}
	for _, odd := range []attr{{0, "user.x", nil}, {0, "", nil}, {2, "x", nil}, {5, "x", nil}, {7, "x", nil}, {0x84, "x", nil}} {
		if name, ok := joinXattr(odd.index, odd.suffix); ok {
			t.Errorf("number %d and %q is %s", odd.index, odd.suffix, name)
		}
	}
}

func TestRedirect(t *testing.T) {
	d := tree.Digest{0xab, 0xcd, 31: 0x0f}
	path := redirect(d)
	if got, ok := parseRedirect(path[:]); !ok || got != d || string(path[:6]) != "/ab/cd" {
		t.Errorf("%s came back as %x", path[:], got)
	}
	none := redirect(tree.Digest{})
	for _, bad := range []string{"", string(none[:]), "/AB" + string(path[3:]), string(path[:65]), string(path[:]) + "0", "xab" + string(path[3:]), "/ab/../" + string(path[7:])} {
		if got, ok := parseRedirect([]byte(bad)); ok {
			t.Errorf("%q is %x", bad, got)
		}
	}
}
