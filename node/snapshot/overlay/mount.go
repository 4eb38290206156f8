package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/thread"
	"berth/node/snapshot"
)

// plain are the options that keep all of a snapshot's change in its folder.
var plain = []string{"index=off", "redirect_dir=off", "metacopy=off"}

// stack is what overlayfs puts together: folders relative to layers/, the
// topmost lower first.
type stack struct {
	lowers      []string
	upper, work string // "" for a View
	volatile    bool
	uids, gids  []snapshot.IDMap
}

// Mounts says how another process mounts the snapshot.
func (s *Store) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	st, err := s.stack(key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot: %w", err)
	}
	if st.uids != nil {
		return nil, errs.New(errs.Unsupported, "mounts of snapshot %s: its owners are shifted, which mount(2) cannot say", key)
	}
	options := []string{"lowerdir=" + joinLowers(st.lowers, s.dir+"/")}
	if st.upper == "" {
		options = append(options, "ro")
	} else {
		options = append(options, "upperdir="+filepath.Join(s.dir, st.upper), "workdir="+filepath.Join(s.dir, st.work))
	}
	options = append(options, plain...)
	if st.volatile {
		options = append(options, "volatile")
	}
	return []snapshot.Mount{{Type: "overlay", Source: "overlay", Options: options}}, ctx.Err()
}

// Mount mounts the snapshot on target.
func (s *Store) Mount(ctx context.Context, key snapshot.Key, target string) error {
	st, err := s.stack(key)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = s.mount(st, target)
	}
	if err != nil {
		return fmt.Errorf("mount snapshot %s: %w", key, err)
	}
	return nil
}

// Unmount takes the mount on target away. Writing its files to disk takes
// longer: the last reference is dropped in the background.
func (s *Store) Unmount(ctx context.Context, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	held, heldErr := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if heldErr == nil {
		s.closer.Add(held)
	}
	if err != nil && !errs.IsAny(err, unix.EINVAL, unix.ENOENT, unix.ENOTDIR) {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	return nil
}

func (s *Store) closeDescriptors(ctx context.Context) {
	for {
		fds := s.closer.Take(ctx)
		if fds == nil {
			fds = s.closer.TakeAll()
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// stack finds the layers of an Active snapshot or a View.
func (s *Store) stack(key snapshot.Key) (stack, error) {
	rec, err := s.records.Mountable(key)
	if err != nil {
		return stack{}, err
	}
	chain, err := s.chain(rec.Parent)
	if err != nil {
		return stack{}, err
	}
	var st stack
	for _, layer := range chain {
		st.lowers = append(st.lowers, layer.ID+"/fs")
	}
	// overlayfs wants a lower for an upper and two lowers for none.
	st.lowers = append(st.lowers, emptyLayer)
	if rec.Kind == snapshot.KindActive {
		st.upper, st.work = rec.ID+"/fs", rec.ID+"/work"
		st.volatile = rec.Labels[snapshot.Volatile] != ""
	} else if len(st.lowers) == 1 {
		st.lowers = append(st.lowers, emptyOther)
	}
	st.uids, st.gids, err = snapshot.IDMaps(rec.Labels)
	return st, err
}

// chain lists the layers from key down that a mount needs.
func (s *Store) chain(key snapshot.Key) ([]*snapshot.Record, error) {
	return s.records.Chain(key, func(rec *snapshot.Record) bool { return rec.Opaque })
}

// mount tries the kernel's interface of descriptors, which knows no limit on
// the length of options and shifts owners, and then mount(2).
func (s *Store) mount(st stack, target string) error {
	if st.volatile {
		// Left there by a mount before; its warning is what the label waives.
		if err := os.RemoveAll(filepath.Join(s.dir, st.work, "work", "incompat")); err != nil {
			return err
		}
	}
	err := s.mountByDescriptors(st, target)
	if st.uids != nil && errors.Is(err, errs.Unsupported) {
		return errs.Full(s.mountShifted(st, target))
	}
	if err == nil || st.uids != nil || !errs.IsAny(err, unix.ENOSYS, unix.EINVAL) {
		return errs.Full(err)
	}
	if old := s.mountByOptions(st, target); old != nil {
		return errs.Full(fmt.Errorf("%w, and by descriptors: %w", old, err))
	}
	return nil
}

// mountByDescriptors mounts with fsopen. Without shifted owners the layers are
// named by path, for the mount table; else by descriptor, out of a copy of the
// layers' mount that shifts them.
func (s *Store) mountByDescriptors(st stack, target string) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen overlay", err)
	}
	defer unix.Close(fsfd)
	set := func(name, layer string) error {
		return unix.FsconfigSetString(fsfd, name, s.short(layer))
	}
	if st.uids != nil {
		shifted, err := s.shifted(st.uids, st.gids)
		if err != nil {
			return err
		}
		defer unix.Close(shifted)
		set = func(name, layer string) error { return setLayer(fsfd, shifted, name, layer) }
	}
	if err := configure(fsfd, st, set); err != nil {
		return shiftless(st, fmt.Errorf("%w%s", err, kernelSays(fsfd)))
	}
	create := unix.FsconfigCreate
	if st.uids != nil {
		create = func(fsfd int) error { return s.createShifted(fsfd, st.uids, st.gids) }
	}
	if err := create(fsfd); err != nil {
		return shiftless(st, fmt.Errorf("overlayfs on %d lowers: %w%s", len(st.lowers), err, kernelSays(fsfd)))
	}
	attr := 0
	if st.upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

func configure(fsfd int, st stack, set func(name, layer string) error) error {
	if err := unix.FsconfigSetString(fsfd, "source", "overlay"); err != nil {
		return os.NewSyscallError("fsconfig source", err)
	}
	for _, lower := range st.lowers {
		if err := set("lowerdir+", lower); err != nil {
			return fmt.Errorf("lower %s: %w", lower, err)
		}
	}
	if st.upper != "" {
		if err := set("upperdir", st.upper); err != nil {
			return fmt.Errorf("upper %s: %w", st.upper, err)
		}
		if err := set("workdir", st.work); err != nil {
			return fmt.Errorf("work %s: %w", st.work, err)
		}
	}
	for _, option := range plain {
		name, value, _ := strings.Cut(option, "=")
		if err := unix.FsconfigSetString(fsfd, name, value); err != nil {
			return fmt.Errorf("option %s: %w", option, err)
		}
	}
	if st.volatile {
		if err := unix.FsconfigSetFlag(fsfd, "volatile"); err != nil {
			return fmt.Errorf("option volatile: %w", err)
		}
	}
	return nil
}

// shiftless says plainly that a mount failed for what only newer kernels have:
// layers named by descriptors (6.13), and out of a detached mount (6.15).
func shiftless(st stack, err error) error {
	if st.uids != nil && errs.IsAny(err, unix.EOPNOTSUPP, unix.EINVAL, unix.EBADF) {
		return errs.New(errs.Unsupported, "overlayfs of this kernel cannot shift the owners of layers; Linux 6.15 can: %w", err)
	}
	return err
}

// short is the path of a layer in at most the 255 bytes that fsconfig takes.
func (s *Store) short(layer string) string {
	if full := s.dir + "/" + layer; len(full) < 250 {
		return full
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", s.dirfd, layer)
}

// setLayer names a layer by a descriptor that is opened below dirfd.
func setLayer(fsfd, dirfd int, name, layer string) error {
	fd, err := unix.Openat(dirfd, layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FsconfigSetFd(fsfd, name, fd)
}

// kernelSays returns what the kernel logged on a mount that failed.
func kernelSays(fsfd int) string {
	buf := make([]byte, 1024)
	n, err := unix.Read(fsfd, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}

// mountByOptions mounts with mount(2), whose options fit in a page. So the
// layers are named relative to their common folder, by a thread that goes
// there, and is thrown away after.
func (s *Store) mountByOptions(st stack, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	flags, data := pageOptions(st)
	if len(data) >= os.Getpagesize() {
		return errs.New(errs.Unsupported, "%d lowers are too many for this kernel", len(st.lowers))
	}
	return thread.Own(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Fchdir(s.dirfd); err != nil {
			return &os.PathError{Op: "chdir", Path: s.dir, Err: err}
		}
		return os.NewSyscallError("mount overlay", unix.Mount("overlay", target, "overlay", flags, data))
	})
}

// pageOptions are those of mount(2), with names relative to the layers' folder.
func pageOptions(st stack) (flags uintptr, data string) {
	options := append([]string{"lowerdir=" + joinLowers(st.lowers, "")}, plain...)
	flags = unix.MS_RDONLY
	if st.upper != "" {
		flags = 0
		options = append(options, "upperdir="+st.upper, "workdir="+st.work)
	}
	if st.volatile {
		options = append(options, "volatile")
	}
	return flags, strings.Join(options, ",")
}

func joinLowers(lowers []string, prefix string) string {
	var b strings.Builder
	for i, lower := range lowers {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(prefix)
		b.WriteString(lower)
	}
	return b.String()
}
