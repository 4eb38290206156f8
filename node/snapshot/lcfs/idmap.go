package lcfs

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/thread"
	"berth/node/snapshot"
)

// shift is a detached copy of the mount that the layers lie on, with owners
// shifted. overlayfs takes uppers and lowers out of such a mount.
type shift struct {
	ns      *os.File
	folders int
	images  []int // a mount that is attached nowhere ends with its descriptor
}

func (s *Store) shifted(uids, gids []snapshot.IDMap) (*shift, error) {
	ns, err := s.users.Get(uids, gids)
	if err != nil {
		return nil, err
	}
	folders, err := unix.OpenTree(s.dirfd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	sh := &shift{ns: ns, folders: folders}
	if err := sh.apply(folders); err != nil {
		sh.close()
		return nil, errs.New(errs.Unsupported, "the kernel cannot shift the owners of %s: %w", s.layers, err)
	}
	return sh, nil
}

func (sh *shift) close() {
	_ = unix.Close(sh.folders)
	closeAll(sh.images)
}

func (sh *shift) apply(mount int) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(sh.ns.Fd())}
	return unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr)
}

// setFolder names a folder by a descriptor out of the shifted mount.
func (sh *shift) setFolder(fsfd int, option, name string) error {
	fd, err := unix.Openat(sh.folders, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FsconfigSetFd(fsfd, option, fd)
}

// setImage names an image that is mounted for this shift alone.
func (sh *shift) setImage(fsfd int, im *images, name string) error {
	mount, err := im.clone(name)
	if err != nil {
		return err
	}
	sh.images = append(sh.images, mount)
	if err := sh.apply(mount); err != nil {
		return errs.New(errs.Unsupported, "the kernel cannot shift the owners of an image: %w", err)
	}
	return unix.FsconfigSetFd(fsfd, "lowerdir+", mount)
}

// createShifted makes the overlay as the container's root.
func createShifted(fsfd int, uids, gids []snapshot.IDMap) error {
	return thread.Own(func() error {
		return snapshot.AsRootOf(uids, gids, func() error { return unix.FsconfigCreate(fsfd) })
	})
}

// mountShifted mounts with shifted owners, as options for mount(2) say, where
// overlayfs takes no layers of mounts that are attached nowhere.
func (s *Store) mountShifted(st stack, options []string, target string) error {
	ns, err := s.users.Get(st.uids, st.gids)
	if err != nil {
		return err
	}
	trees := []string{"layers"}
	for _, l := range st.lowers {
		if l.image != "" {
			trees = append(trees, "mnt/"+shortName(l.image))
		}
	}
	return snapshot.Shifted{
		Dir: s.dir, Trees: trees, Users: ns, UIDs: st.uids, GIDs: st.gids, Options: strings.Join(options, ","), ReadOnly: st.upper == "",
	}.Mount(target)
}
