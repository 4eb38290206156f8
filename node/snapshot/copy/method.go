package copy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
)

// Method is how a tree is cloned for an Active snapshot.
type Method string

// The methods, the best first. Trees that one has made serve the others.
const (
	Btrfs   Method = "btrfs"   // a snapshot of a subvolume: constant time
	Reflink Method = "reflink" // an inode for each file, on the same blocks
	Copy    Method = "copy"    // everything
)

// Probe tries in dir whether the method works there, with the bind mount that
// any of them needs. Unsupported: it does not, and the error says why.
func Probe(ctx context.Context, dir string, method Method) error {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // users reach the socket through it
		return err
	}
	scratch, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	fd, err := unix.Open(scratch, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = probe(scratch, fd, method)
	ctx = context.WithoutCancel(ctx)
	return errors.Join(errs.Full(err), removeTree(ctx, fd, "from"), removeTree(ctx, fd, "to"), removeTree(ctx, fd, "mount"), os.RemoveAll(scratch))
}

func probe(scratch string, fd int, method Method) error {
	switch method {
	case Btrfs:
		if err := tryBtrfs(fd); err != nil {
			return err
		}
	case Reflink:
		if err := tryReflink(scratch); err != nil {
			return err
		}
	case Copy:
	default:
		return errs.New(errs.Invalid, "no method %q: want btrfs, reflink or copy", method)
	}
	target := filepath.Join(scratch, "mount")
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	if err := bind(fd, ".", target, binding{readOnly: true}); err != nil {
		return errs.New(errs.Unsupported, "bind mounts do not work here: %w", err)
	}
	return unmount(target)
}

func tryBtrfs(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Type != unix.BTRFS_SUPER_MAGIC {
		return errs.New(errs.Unsupported, "the folder does not lie on btrfs")
	}
	if err := createSubvolume(fd, "from"); err != nil {
		return errs.New(errs.Unsupported, "a btrfs subvolume cannot be made: %w", err)
	}
	from, err := unix.Openat(fd, "from", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if err := snapshotSubvolume(from, fd, "to"); err != nil {
		return errs.New(errs.Unsupported, "a btrfs subvolume cannot be snapshot: %w", err)
	}
	return nil
}

func tryReflink(scratch string) error {
	from, err := os.Create(filepath.Join(scratch, "from"))
	if err != nil {
		return err
	}
	defer from.Close()
	if _, err := from.Write(make([]byte, 64<<10)); err != nil {
		return err
	}
	to, err := os.Create(filepath.Join(scratch, "to"))
	if err != nil {
		return err
	}
	defer to.Close()
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		return errs.New(errs.Unsupported, "the file system cannot share blocks between files (reflink): %w", err)
	}
	return nil
}

// ways of cloning files for Active snapshots.
func (m Method) file() folder.Method {
	if m == Copy {
		return folder.Copy
	}
	return folder.Reflink
}

// What btrfs takes, from its user interface: the numbers of its ioctls, and
// their argument of one page.
const (
	subvolumeCreate   = 0x5000940e
	subvolumeSnapshot = 0x50009401
	subvolumeDestroy  = 0x5000940f
	subvolumeInode    = 256 // of a subvolume's root
)

type subvolumeArgs struct {
	fd   int64
	name [4088]byte
}

func subvolumeCall(call uintptr, dirfd int, name string, from int) error {
	args := subvolumeArgs{fd: int64(from)}
	if len(name) >= len(args.name) {
		return unix.ENAMETOOLONG
	}
	copy(args.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dirfd), call, uintptr(unsafe.Pointer(&args))) //nolint:gosec // an ioctl's argument
	if errno != 0 {
		return errno
	}
	return nil
}

func createSubvolume(dirfd int, name string) error {
	return subvolumeCall(subvolumeCreate, dirfd, name, 0)
}

func snapshotSubvolume(from, dirfd int, name string) error {
	return subvolumeCall(subvolumeSnapshot, dirfd, name, from)
}

func isSubvolume(fd int) bool {
	var st unix.Stat_t
	var fs unix.Statfs_t
	return unix.Fstat(fd, &st) == nil && unix.Fstatfs(fd, &fs) == nil &&
		fs.Type == unix.BTRFS_SUPER_MAGIC && st.Ino == subvolumeInode
}

// removeTree deletes name in dirfd, a subvolume at once. Others may be deleting
// it too: what a crash left is swept in the background.
func removeTree(ctx context.Context, dirfd int, name string) error {
	for {
		var st unix.Stat_t
		if unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT {
			return nil
		}
		if st.Ino == subvolumeInode && subvolumeCall(subvolumeDestroy, dirfd, name, 0) == nil {
			return nil
		}
		err := folder.Remove(ctx, dirfd, name)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) || ctx.Err() != nil {
			return fmt.Errorf("delete tree: %w", err)
		}
	}
}
