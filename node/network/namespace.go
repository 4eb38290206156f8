package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// namespaceID is what NewNamespace takes: it becomes a file's name.
var namespaceID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func (s *Set) namespacePath(id string) (string, error) {
	if !namespaceID.MatchString(id) {
		return "", errs.New(errs.Invalid, "%q cannot name a network namespace", id)
	}
	return filepath.Join(s.cfg.State, "netns", id), nil
}

// NewNamespace makes a network namespace with lo up and returns its path. It
// fails with errs.Exists if there is one of that id, usually a container's.
func (s *Set) NewNamespace(ctx context.Context, id string) (string, error) {
	path, err := s.namespacePath(id)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return "", err
	}
	if isNamespace(path) {
		return "", errs.New(errs.Exists, "network namespace %s exists", id)
	}
	file, err := os.OpenFile(path, os.O_CREATE, 0o444) // may be there, left by a crash before the mount
	if err != nil {
		return "", err
	}
	if err := file.Close(); err != nil {
		return "", err
	}
	if err := makeNamespace(path); err != nil {
		return "", errors.Join(fmt.Errorf("make network namespace: %w", err), os.Remove(path))
	}
	return path, nil
}

// RemoveNamespace removes a namespace; one that is not there is no error.
// The kernel takes its links down a little later.
func (s *Set) RemoveNamespace(_ context.Context, id string) error {
	path, err := s.namespacePath(id)
	if err != nil {
		return err
	}
	err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount network namespace %s: %w", id, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// makeNamespace binds a new namespace on the file at path. The thread that
// makes it goes back to where it was, or is not used again.
func makeNamespace(path string) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("unshare: %w", err)
	}
	err = loopbackUp()
	if err == nil {
		err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// loopbackUp uses an ioctl, which costs less than a netlink socket.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
