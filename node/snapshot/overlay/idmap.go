package overlay

import (
	"os"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// shifted returns a detached copy of the mount that the layers lie on, with
// owners shifted. overlayfs takes lowers and uppers out of such a mount.
func (s *Store) shifted(uids, gids []snapshot.IDMap) (int, error) {
	ns, err := s.users.Get(uids, gids)
	if err != nil {
		return -1, err
	}
	tree, err := unix.OpenTree(s.dirfd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, os.NewSyscallError("open_tree", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(tree)
		return -1, errs.New(errs.Unsupported, "the kernel cannot shift the owners of %s: %w", s.dir, err)
	}
	return tree, nil
}

// createShifted makes the overlay as the host's ids of the container's root.
// overlayfs does its own work on the layers with the identity of who made the
// mount; through a mount that shifts owners only those in the map can own what
// is made.
func (s *Store) createShifted(fsfd int, uids, gids []snapshot.IDMap) error {
	uid, okUID := hostRoot(uids)
	gid, okGID := hostRoot(gids)
	if !okUID || !okGID {
		return errs.New(errs.Unsupported, "the id maps have no root")
	}
	return s.onOwnThread(func() error {
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
		return unix.FsconfigCreate(fsfd)
	})
}

func hostRoot(maps []snapshot.IDMap) (int, bool) {
	for _, m := range maps {
		if m.Container == 0 {
			return int(m.Host), true
		}
	}
	return 0, false
}
