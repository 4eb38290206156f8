package bundle

import (
	"fmt"

	"golang.org/x/sys/unix"

	"berth/base/thread"
)

// BorrowShm mounts the /dev/shm of the container of which pid is a process
// at target, an empty folder. The caller unmounts it.
//
// The kernel binds nothing out of another mount namespace, so the mount is
// cloned in there, by a thread that ends with it, and attached out here.
func BorrowShm(pid int, target string) error {
	var tree int
	if err := thread.Own(func() (err error) {
		tree, err = cloneShm(pid)
		return err
	}); err != nil {
		return fmt.Errorf("borrow /dev/shm of process %d: %w", pid, err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("borrow /dev/shm of process %d: mount at %s: %w", pid, target, err)
	}
	return nil
}

func cloneShm(pid int) (int, error) {
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return -1, err
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
		return -1, err
	}
	return unix.OpenTree(unix.AT_FDCWD, "/dev/shm", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
}
