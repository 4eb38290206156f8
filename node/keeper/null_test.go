package keeper

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What a container does to its /dev/null concerns nobody else.
func TestNulls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("null devices of one's own need root")
	}
	n := newNulls()
	defer n.close()
	if n.dir < 0 {
		t.Fatal("no file system to make them in")
	}
	var before, after, other unix.Stat_t
	if err := unix.Stat("/dev/null", &before); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		fd, err := n.open()
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Fstat(fd, &other); err != nil || other.Rdev != before.Rdev || other.Mode != unix.S_IFCHR|0o666 || other.Uid != 0 {
			t.Errorf("%+v, %v", other, err)
		}
		if err := unix.Fchown(fd, 100000, 100000); err != nil {
			t.Fatal(err)
		}
		if c, err := unix.Write(fd, []byte("gone")); c != 4 || err != nil {
			t.Errorf("%d, %v", c, err)
		}
		if c, err := unix.Read(fd, make([]byte, 4)); c != 0 || err != nil {
			t.Errorf("%d, %v", c, err)
		}
	}
	if err := unix.Stat("/dev/null", &after); err != nil || after.Uid != before.Uid {
		t.Errorf("/dev/null belongs to %d (%v)", after.Uid, err)
	}
}
