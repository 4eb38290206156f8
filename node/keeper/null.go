package keeper

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// nulls makes what processes get for /dev/null: a device of its own for each.
// Some runtimes (crun) give standard streams to the root of the container's
// user namespace; the machine's own /dev/null would be gone to it for good.
type nulls struct {
	mu  sync.Mutex
	dir int // of a file system that nobody sees; -1: there can be none
}

func newNulls() *nulls {
	dir, err := hiddenDir()
	if err != nil {
		dir = -1 // without the right to mount, none can be given away either
	}
	return &nulls{dir: dir}
}

// hiddenDir is a small file system in memory that is mounted nowhere.
func hiddenDir() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", "64k"); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
}

// open gives one, for reading and writing.
func (n *nulls) open() (int, error) {
	const name = "null"
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dir < 0 {
		return unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err := unix.Mknodat(n.dir, name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return -1, fmt.Errorf("null device: %w", err)
	}
	defer func() { _ = unix.Unlinkat(n.dir, name, 0) }()
	if err := unix.Fchmodat(n.dir, name, 0o666, 0); err != nil { // whatever our umask is
		return -1, fmt.Errorf("null device: %w", err)
	}
	fd, err := unix.Openat(n.dir, name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("null device: %w", err)
	}
	return fd, nil
}

func (n *nulls) close() {
	if n.dir >= 0 {
		_ = unix.Close(n.dir)
	}
}
