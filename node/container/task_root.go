package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// dropRootOf unmounts the root of c's task and removes its bundle.
func (s *Set) dropRootOf(ctx context.Context, c *container) error {
	if s.isOthersRoot(c) {
		if err := s.Roots.Unmount(ctx, s.rootDir(c.id)); err != nil {
			return fmt.Errorf("unmount the root file system: %w", err)
		}
	}
	return s.dropTaskRoot(ctx, c.id)
}

// isOthersRoot says whether the root of c's task may be on file systems that
// are not the store's. Their owner wants them free when the task is deleted;
// the store lets go of what was mounted some time later.
func (s *Set) isOthersRoot(c *container) bool {
	g, t := c.given.Load(), c.task.Load()
	if g == nil || t == nil || len(t.Request.Rootfs) == 0 {
		return false
	}
	return g.SnapshotKey == "" || slices.ContainsFunc(t.Request.Rootfs, func(m snapshot.Mount) bool {
		return m.Type != "bind" && m.Type != "rbind"
	})
}

// dropTaskRoot unmounts the root of a task and removes its bundle.
func (s *Set) dropTaskRoot(ctx context.Context, id string) error {
	root := s.rootDir(id)
	// The store knows its own mounts, and how to be rid of them soon.
	if err := errors.Join(s.Snapshots.Unmount(ctx, root), s.Roots.Unmount(ctx, root)); err != nil {
		return fmt.Errorf("unmount the root file system: %w", err)
	}
	s.setMounted(id, false)
	if s.clearBundle(id) == nil {
		return nil
	}
	return clearTree(s.bundleDir(id))
}

// clearTree removes a bundle in which a runtime has left folders, and perhaps
// mounts.
func clearTree(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	// Whatever is still mounted there is not to be deleted. What is not is the
	// runtime's: mount points that it made in a root on which nothing was mounted.
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return errs.New(errs.Conflict, "something is still mounted at %s", left[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}

// kernelRoots mounts as mount(8) does.
type kernelRoots struct{}

func (kernelRoots) Mount(_ context.Context, mounts []snapshot.Mount, target string) error {
	for i, m := range mounts {
		if err := mountOne(m, target); err != nil {
			for range i {
				err = errors.Join(err, unix.Unmount(target, unix.MNT_DETACH))
			}
			return fmt.Errorf("mount %s of %.200s: %w", m.Type, m.Source, err)
		}
	}
	return nil
}

// Unmount takes away whatever is mounted at target, one above the other.
func (kernelRoots) Unmount(_ context.Context, target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
	}
}

// mountFlags are the options that the kernel takes as bits. What clears is
// taken away from what came before.
func mountFlags(option string) (set, clears uintptr, ok bool) {
	switch option {
	case "defaults", "rw":
		return 0, unix.MS_RDONLY, true
	case "ro":
		return unix.MS_RDONLY, 0, true
	case "bind":
		return unix.MS_BIND, 0, true
	case "rbind":
		return unix.MS_BIND | unix.MS_REC, 0, true
	case "nosuid":
		return unix.MS_NOSUID, 0, true
	case "suid":
		return 0, unix.MS_NOSUID, true
	case "nodev":
		return unix.MS_NODEV, 0, true
	case "dev":
		return 0, unix.MS_NODEV, true
	case "noexec":
		return unix.MS_NOEXEC, 0, true
	case "exec":
		return 0, unix.MS_NOEXEC, true
	case "noatime":
		return unix.MS_NOATIME, 0, true
	case "atime":
		return 0, unix.MS_NOATIME, true
	case "nodiratime":
		return unix.MS_NODIRATIME, 0, true
	case "relatime":
		return unix.MS_RELATIME, 0, true
	case "strictatime":
		return unix.MS_STRICTATIME, 0, true
	case "sync":
		return unix.MS_SYNCHRONOUS, 0, true
	case "dirsync":
		return unix.MS_DIRSYNC, 0, true
	}
	return 0, 0, false
}

// propagation options are set by a call of their own.
func propagation(option string) (uintptr, bool) {
	recursive, kind := uintptr(0), option
	if rest, ok := strings.CutPrefix(option, "r"); ok && slices.Contains([]string{"private", "shared", "slave", "unbindable"}, rest) {
		recursive, kind = unix.MS_REC, rest
	}
	switch kind {
	case "private":
		return unix.MS_PRIVATE | recursive, true
	case "shared":
		return unix.MS_SHARED | recursive, true
	case "slave":
		return unix.MS_SLAVE | recursive, true
	case "unbindable":
		return unix.MS_UNBINDABLE | recursive, true
	}
	return 0, false
}

// mounting is one mount with its options told apart.
type mounting struct {
	snapshot.Mount
	flags     uintptr
	propagate []uintptr
	data      []string // for the file system
}

// parseMount checks what a client wants mounted.
func parseMount(m snapshot.Mount) (mounting, error) {
	p := mounting{Mount: m}
	for _, option := range m.Options {
		set, clears, isFlag := mountFlags(option)
		spread, isSpread := propagation(option)
		switch {
		case isFlag:
			p.flags = p.flags&^clears | set
		case isSpread:
			p.propagate = append(p.propagate, spread)
		case option == "loop" || strings.HasPrefix(option, "loop="):
			return p, errs.New(errs.Unsupported, "option %s: loop devices are not made here; a file with an EROFS image is mounted as it is", option)
		case strings.ContainsRune(option, 0):
			return p, errs.New(errs.Invalid, "option %q", option)
		case option != "":
			p.data = append(p.data, option)
		}
	}
	if m.Type == "bind" || m.Type == "rbind" {
		p.flags |= unix.MS_BIND
	}
	switch bind := p.flags&unix.MS_BIND != 0; {
	case bind && !filepath.IsAbs(m.Source):
		return p, errs.New(errs.Invalid, "a bind needs an absolute path as its source, not %q", m.Source)
	case bind && len(p.data) > 0:
		return p, errs.New(errs.Invalid, "a bind has no option %q", p.data[0])
	case !bind && (m.Type == "" || strings.ContainsAny(m.Type, "/\x00")):
		return p, errs.New(errs.Invalid, "mount of type %q", m.Type)
	}
	return p, nil
}

func mountOne(m snapshot.Mount, target string) error {
	p, err := parseMount(m)
	if err != nil {
		return err
	}
	if p.flags&unix.MS_BIND != 0 {
		err = p.bind(target)
	} else {
		err = p.mount(target)
	}
	if err != nil {
		return mountError(err)
	}
	for _, spread := range p.propagate {
		if err := unix.Mount("", target, "", spread, ""); err != nil {
			return errors.Join(fmt.Errorf("set its propagation: %w", err), unix.Unmount(target, unix.MNT_DETACH))
		}
	}
	return nil
}

// bind binds, and then sets the flags that a bind by itself does not heed.
func (p *mounting) bind(target string) error {
	if err := unix.Mount(p.Source, target, "", p.flags&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
		return err
	}
	rest := p.flags &^ (unix.MS_BIND | unix.MS_REC)
	if rest == 0 {
		return nil
	}
	if err := unix.Mount("", target, "", rest|unix.MS_BIND|unix.MS_REMOUNT, ""); err != nil {
		return errors.Join(err, unix.Unmount(target, unix.MNT_DETACH))
	}
	return nil
}

// mount mounts a file system. Options that do not fit into the page that
// mount(2) takes are set one by one.
func (p *mounting) mount(target string) error {
	data := strings.Join(p.data, ",")
	if len(data) < os.Getpagesize() {
		return unix.Mount(p.Source, target, p.Type, p.flags, data)
	}
	return p.mountByParts(target)
}

func (p *mounting) mountByParts(target string) error {
	fd, err := unix.Fsopen(p.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	fs := os.NewFile(uintptr(fd), p.Type)
	defer fs.Close()
	if err := unix.FsconfigSetString(fd, "source", p.Source); err != nil && p.Source != "" {
		return err
	}
	for _, option := range p.data {
		if err := configure(fd, option); err != nil {
			return fmt.Errorf("option %.200s: %w", option, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, int(mountAttributes(p.flags)))
	if err != nil {
		return err
	}
	tree := os.NewFile(uintptr(mount), target)
	defer tree.Close()
	return unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// configure sets one option. Layers of an overlay go in one by one: all of them
// together are longer than the kernel takes.
func configure(fd int, option string) error {
	name, value, valued := strings.Cut(option, "=")
	switch {
	case !valued:
		return unix.FsconfigSetFlag(fd, name)
	case name != "lowerdir":
		return unix.FsconfigSetString(fd, name, value)
	}
	for layer := range strings.SplitSeq(value, ":") {
		if err := unix.FsconfigSetString(fd, "lowerdir+", layer); err != nil {
			return err
		}
	}
	return nil
}

// mountAttributes are flags of mount(2) as fsmount(2) has them.
func mountAttributes(flags uintptr) (attributes uintptr) {
	for flag, attribute := range map[uintptr]uintptr{
		unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY, unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID, unix.MS_NODEV: unix.MOUNT_ATTR_NODEV,
		unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC, unix.MS_NOATIME: unix.MOUNT_ATTR_NOATIME, unix.MS_NODIRATIME: unix.MOUNT_ATTR_NODIRATIME,
		unix.MS_STRICTATIME: unix.MOUNT_ATTR_STRICTATIME,
	} {
		if flags&flag != 0 {
			attributes |= attribute
		}
	}
	return attributes
}

// mountError tells what the client got wrong from what this machine cannot.
func mountError(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return errs.New(errs.Unsupported, "this kernel does not know such a file system: %w", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOTBLK):
		return errs.New(errs.Invalid, "%w", err)
	case errors.Is(err, unix.ENOENT):
		return errs.New(errs.NotFound, "%w", err)
	}
	return err
}
