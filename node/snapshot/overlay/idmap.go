package overlay

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/thread"
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

// createShifted makes the overlay as the container's root.
func (s *Store) createShifted(fsfd int, uids, gids []snapshot.IDMap) error {
	return thread.Own(func() error {
		return snapshot.AsRootOf(uids, gids, func() error { return unix.FsconfigCreate(fsfd) })
	})
}

// mountShifted mounts with shifted owners where overlayfs takes no layers of
// mounts that are attached nowhere.
func (s *Store) mountShifted(st stack, target string) error {
	ns, err := s.users.Get(st.uids, st.gids)
	if err != nil {
		return err
	}
	target, err = filepath.Abs(target)
	if err != nil {
		return err
	}
	_, data := pageOptions(st)
	return snapshot.Shifted{
		Dir: s.dir, Trees: []string{"."}, Users: ns, UIDs: st.uids, GIDs: st.gids, Options: data, ReadOnly: st.upper == "",
	}.Mount(target)
}
