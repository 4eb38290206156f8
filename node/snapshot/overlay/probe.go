package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
	"berth/node/snapshot"
)

// Probe tries in dir what the driver needs: a container's tree on two layers,
// in which a file is changed and another one deleted. Unsupported: that does
// not work there, and the error says why.
func Probe(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // users reach the socket through it
		return err
	}
	scratch, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return errs.Full(err)
	}
	if err := probe(scratch); err != nil {
		err = errs.New(errs.Unsupported, "overlayfs does not work in %s: %w", dir, err)
		return errors.Join(err, sweepProbe(ctx, dir, scratch))
	}
	return sweepProbe(ctx, dir, scratch)
}

func sweepProbe(ctx context.Context, dir, scratch string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return folder.Remove(context.WithoutCancel(ctx), fd, filepath.Base(scratch))
}

func probe(scratch string) error {
	at := func(name string) string { return filepath.Join(scratch, name) }
	for _, name := range []string{"low/d", "high/d", "fs", "work", "mnt"} {
		if err := os.MkdirAll(at(name), 0o755); err != nil { //nolint:gosec // as layers have them
			return err
		}
	}
	for _, name := range []string{"low/changed", "low/deleted", "low/d/hidden"} {
		if err := os.WriteFile(at(name), []byte("x"), 0o600); err != nil {
			return err
		}
	}
	if err := unix.Lsetxattr(at("high/d"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("the file system keeps no trusted xattrs: %w", err)
	}
	fd, err := unix.Open(scratch, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	s := &Store{dir: scratch, dirfd: fd, closer: snapshot.NewQueue[int]()}
	defer s.work.Wait()
	if err := s.mount(stack{lowers: []string{"high", "low"}, upper: "fs", work: "work"}, at("mnt")); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(at("mnt"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }()
	if _, err := os.Lstat(at("mnt/d/hidden")); !errors.Is(err, os.ErrNotExist) {
		return errors.New("what an opaque folder hides shows")
	}
	if err := os.WriteFile(at("mnt/changed"), []byte("y"), 0o600); err != nil {
		return fmt.Errorf("change a file: %w", err)
	}
	if err := os.Remove(at("mnt/deleted")); err != nil {
		return fmt.Errorf("delete a file: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(at("fs/deleted"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return errors.Join(errors.New("a deleted file is no whiteout"), err)
	}
	return nil
}
