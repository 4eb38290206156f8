package copy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Mounts says how another process mounts the snapshot.
func (s *Store) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	rec, tree, err := s.mountable(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot: %w", err)
	}
	if rec.Labels[snapshot.UIDMap] != "" {
		return nil, errs.New(errs.Unsupported, "mounts of snapshot %s: its owners are shifted, which mount(2) cannot say", key)
	}
	options := []string{"bind", "rw"}
	if rec.Kind == snapshot.KindView {
		options = []string{"bind", "ro"}
	}
	return []snapshot.Mount{{Type: "bind", Source: filepath.Join(s.dir, tree), Options: options}}, nil
}

// Mount mounts the snapshot on target.
func (s *Store) Mount(ctx context.Context, key snapshot.Key, target string) error {
	rec, tree, err := s.mountable(ctx, key)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = s.mount(rec, tree, target)
	}
	if err != nil {
		return fmt.Errorf("mount snapshot %s: %w", key, errs.Full(err))
	}
	return nil
}

func (s *Store) mountable(ctx context.Context, key snapshot.Key) (*snapshot.Record, string, error) {
	rec, err := s.records.Mountable(key)
	if err != nil {
		return nil, "", err
	}
	tree, err := s.whole(ctx, rec)
	return rec, tree, err
}

func (s *Store) mount(rec *snapshot.Record, tree, target string) error {
	b := binding{readOnly: rec.Kind == snapshot.KindView}
	uids, gids, err := snapshot.IDMaps(rec.Labels)
	if err != nil {
		return err
	}
	if uids != nil {
		if b.users, err = s.users.Get(uids, gids); err != nil {
			return err
		}
	}
	return bind(s.dirfd, tree, target, b)
}

// Unmount takes the mount on target away.
func (s *Store) Unmount(ctx context.Context, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return unmount(target)
}

func unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errs.IsAny(err, unix.EINVAL, unix.ENOENT, unix.ENOTDIR) {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	return nil
}

// binding says how a folder is mounted elsewhere.
type binding struct {
	readOnly bool
	users    *os.File // a user namespace that shifts owners
}

// bind mounts the folder name of dirfd on target. What is mounted there later
// does not show in the folder.
func bind(dirfd int, name, target string, b binding) error {
	tree, err := unix.OpenTree(dirfd, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if b.readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	if b.users != nil {
		shift := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(b.users.Fd())}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &shift); err != nil {
			return errs.New(errs.Unsupported, "the kernel cannot shift the owners of files here: %w", err)
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}
