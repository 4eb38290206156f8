package snapshot

import (
	"os"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/thread"
)

// A Shifted is an overlay on layers whose owners are shifted, for kernels
// whose overlayfs takes no layers of mounts that are attached nowhere (before
// Linux 6.15). It is mounted in a mount namespace that lives for a moment
// only, where the layers' folders are covered by copies that shift; overlayfs
// keeps copies of its own. Nobody else ever sees the former.
type Shifted struct {
	Dir      string   // what Trees and the names in Options are relative to
	Trees    []string // folders that are layers, or that such lie in, or "."; outer ones first
	Users    *os.File // a user namespace with the maps
	UIDs     []IDMap
	GIDs     []IDMap
	Options  string
	ReadOnly bool
}

// Mount mounts it on target.
func (s Shifted) Mount(target string) error {
	if len(s.Options) >= os.Getpagesize() {
		return errs.New(errs.Unsupported, "the layers are too many for this kernel")
	}
	tree := -1
	if err := thread.Own(func() (err error) {
		tree, err = s.mountApart(target)
		return err
	}); err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

// mountApart takes the thread into a mount namespace of its own, and returns
// the mount that was made there.
func (s Shifted) mountApart(target string) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, &os.PathError{Op: "make private", Path: "/", Err: err}
	}
	for _, tree := range s.Trees {
		if err := s.cover(tree); err != nil {
			return -1, err
		}
	}
	if err := unix.Chdir(s.Dir); err != nil {
		return -1, &os.PathError{Op: "chdir", Path: s.Dir, Err: err}
	}
	flags := uintptr(0)
	if s.ReadOnly {
		flags = unix.MS_RDONLY
	}
	err := AsRootOf(s.UIDs, s.GIDs, func() error {
		return os.NewSyscallError("mount overlay", unix.Mount("overlay", target, "overlay", flags, s.Options))
	})
	if err != nil {
		return -1, err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	return tree, os.NewSyscallError("open_tree", err)
}

// cover puts a copy that shifts over a folder.
func (s Shifted) cover(tree string) error {
	if err := unix.Chdir(s.Dir); err != nil {
		return &os.PathError{Op: "chdir", Path: s.Dir, Err: err}
	}
	copied, err := unix.OpenTree(unix.AT_FDCWD, tree, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: tree, Err: err}
	}
	defer unix.Close(copied)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(s.Users.Fd())}
	if err := unix.MountSetattr(copied, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return errs.New(errs.Unsupported, "the kernel cannot shift the owners of %s/%s: %w", s.Dir, tree, err)
	}
	if err := unix.MoveMount(copied, "", unix.AT_FDCWD, tree, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: tree, Err: err}
	}
	return nil
}

// AsRootOf runs fn as the host's ids of the container's root, with all
// capabilities that the thread had. The thread is the caller's to throw away.
//
// overlayfs does its own work on the layers with the identity of who made the
// mount; through a mount that shifts owners only those in the map can own what
// is made.
func AsRootOf(uids, gids []IDMap, fn func() error) error {
	uid, okUID := hostRoot(uids)
	gid, okGID := hostRoot(gids)
	if !okUID || !okGID {
		return errs.New(errs.Unsupported, "the id maps have no root")
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	if err := unix.Setfsgid(gid); err != nil {
		return os.NewSyscallError("setfsgid", err)
	}
	if err := unix.Setfsuid(uid); err != nil {
		return os.NewSyscallError("setfsuid", err)
	}
	// The change from root took the capabilities over files away.
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	return fn()
}

func hostRoot(maps []IDMap) (int, bool) {
	for _, m := range maps {
		if m.Container == 0 {
			return int(m.Host), true
		}
	}
	return 0, false
}
