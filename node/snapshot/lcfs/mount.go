package lcfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/thread"
	"berth/node/snapshot"
)

// closeDelay is how long descriptors of mounts that were taken down wait for
// company: the last one of an overlay has the whole file system synced, and
// all at once share that.
const closeDelay = time.Second

// options say how overlayfs treats the upper. Where it can, all of a
// snapshot's change is in its own folder. Redirects lead from images to
// objects. All files have one device number, and names of one file one inode
// number, though layers are on several file systems.
func (s *Store) options() []string { return overlayOptions(s.metacopy) }

func overlayOptions(metacopy bool) []string {
	if metacopy {
		return []string{"index=off", "xino=on", "redirect_dir=on", "metacopy=on"}
	}
	return []string{"index=off", "xino=on", "redirect_dir=follow", "metacopy=off"}
}

// Mount mounts the snapshot on target.
func (s *Store) Mount(ctx context.Context, key snapshot.Key, target string) error {
	err := ctx.Err()
	if err == nil {
		err = s.mount(ctx, key, target)
	}
	if err != nil {
		return fmt.Errorf("mount snapshot %s: %w", key, errs.Full(err))
	}
	return nil
}

func (s *Store) mount(ctx context.Context, key snapshot.Key, target string) error {
	_, st, err := s.ready(ctx, key)
	if err != nil {
		return err
	}
	if s.fds && (st.uids == nil || s.shifts) {
		err = s.mountStack(ctx, st, target)
	} else {
		err = s.mountShown(key, st, target)
	}
	if err != nil {
		s.unuse(st.held)
		return err
	}
	s.keep(st, byTarget(target), absolute(target))
	return nil
}

// mountStack mounts by descriptors of images that are attached nowhere.
func (s *Store) mountStack(ctx context.Context, st stack, target string) error {
	if err := s.clearVolatile(st); err != nil {
		return err
	}
	missing, err := s.bring(ctx, st)
	if err != nil {
		return err
	}
	if missing >= 0 {
		defer unix.Close(missing)
	}
	var shifted *shift
	if st.uids != nil {
		if shifted, err = s.shifted(st.uids, st.gids); err != nil {
			return err
		}
		defer shifted.close()
	}
	attributes := 0
	if st.upper == "" {
		attributes = unix.MOUNT_ATTR_RDONLY
	}
	create := unix.FsconfigCreate
	if shifted != nil {
		create = func(fsfd int) error { return createShifted(fsfd, st.uids, st.gids) }
	}
	mount, err := mountFS("overlay", attributes, func(fsfd int) error { return s.configure(fsfd, st, shifted, missing) }, create)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return attach(mount, target)
}

// clearVolatile takes away what a volatile mount before has left; its warning
// is what the label waives.
func (s *Store) clearVolatile(st stack) error {
	if !st.volatile {
		return nil
	}
	return os.RemoveAll(filepath.Join(s.layers, st.upper, "work/work/incompat"))
}

func (s *Store) configure(fsfd int, st stack, shifted *shift, missing int) error {
	folder := func(option, name string) error { return set(fsfd, option+"="+s.short(name)) }
	image := func(name string) error { return s.images.set(fsfd, name) }
	if shifted != nil {
		folder = func(option, name string) error { return shifted.setFolder(fsfd, option, name) }
		image = func(name string) error { return shifted.setImage(fsfd, &s.images, name) }
	}
	for _, l := range st.lowers {
		if l.image == "" {
			if err := folder("lowerdir+", l.id+"/fs"); err != nil {
				return fmt.Errorf("lower %s: %w", l.id, err)
			}
			continue
		}
		if err := image(l.image); err != nil {
			return fmt.Errorf("lower %.16s: %w", l.image, err)
		}
	}
	if len(st.lowers) == 0 {
		if err := folder("lowerdir+", emptyFolder); err != nil {
			return err
		}
	}
	if err := s.setObjects(fsfd); err != nil {
		return err
	}
	if err := setMissing(fsfd, missing); err != nil {
		return err
	}
	if st.upper != "" {
		if err := folder("upperdir", st.upper+"/fs"); err != nil {
			return fmt.Errorf("upper %s: %w", st.upper, err)
		}
		if err := folder("workdir", st.upper+"/work"); err != nil {
			return fmt.Errorf("work %s: %w", st.upper, err)
		}
	}
	for _, option := range s.options() {
		if err := set(fsfd, option); err != nil {
			return err
		}
	}
	if st.volatile {
		return set(fsfd, "volatile")
	}
	return nil
}

func (s *Store) setObjects(fsfd int) error {
	fd, err := unix.Open(s.objects.Dir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: s.objects.Dir(), Err: err}
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetFd(fsfd, "datadir+", fd); err != nil {
		return fmt.Errorf("objects: %w", err)
	}
	return nil
}

// short is the path of a folder in layers/ in at most the 255 bytes that
// fsconfig takes.
func (s *Store) short(name string) string {
	if full := s.layers + "/" + name; len(full) < 250 && !strings.ContainsAny(full, special) {
		return full
	}
	return s.byDescriptor(name)
}

// special are characters that mean something in overlayfs's options.
const special = `:,\`

// byDescriptor is a path of a folder in layers/ that is short and plain.
func (s *Store) byDescriptor(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", s.dirfd, name)
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
		if err == nil {
			s.closer.add(held)
		} else {
			_ = unix.Close(held)
		}
	}
	if err != nil && !errs.IsAny(err, unix.EINVAL, unix.ENOENT, unix.ENOTDIR) {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	s.unuse(byTarget(target))
	return nil
}

// closeDescriptors leaves them in the queue while they wait, for closeNow.
func (s *Store) closeDescriptors(ctx context.Context) {
	for {
		n := s.closer.wait(ctx)
		if n > 0 && n < 1024 {
			snapshot.Rest(ctx, closeDelay)
		}
		s.closeNow()
		if ctx.Err() != nil {
			return
		}
	}
}

// closeNow closes what waits for that.
func (s *Store) closeNow() { closeAll(s.closer.takeAll()) }

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// mountOptions are those of mount(2), with all names below prefix.
func (s *Store) mountOptions(st stack, prefix string) []string {
	names := make([]string, 0, len(st.lowers)+1)
	for _, l := range st.lowers {
		if l.image != "" {
			names = append(names, prefix+"mnt/"+shortName(l.image))
		} else {
			names = append(names, prefix+"layers/"+l.id+"/fs")
		}
	}
	if len(names) == 0 {
		names = append(names, prefix+"layers/"+emptyFolder)
	}
	options := []string{"lowerdir=" + strings.Join(names, ":") + "::" + prefix + "objects"}
	if st.upper == "" {
		options = append(options, "ro")
	} else {
		options = append(options, "upperdir="+prefix+"layers/"+st.upper+"/fs", "workdir="+prefix+"layers/"+st.upper+"/work")
	}
	options = append(options, s.options()...)
	if st.volatile {
		options = append(options, "volatile")
	}
	return options
}

// mountShown mounts on images that are mounted for all to see, by mount(2),
// with names relative to the store's folder.
func (s *Store) mountShown(key snapshot.Key, st stack, target string) error {
	if err := s.clearVolatile(st); err != nil {
		return err
	}
	if err := s.showImages(key, st); err != nil {
		return err
	}
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	options := s.mountOptions(st, "")
	flags := uintptr(0)
	if st.upper == "" {
		flags = unix.MS_RDONLY
		options = append(options[:1], options[2:]...)
	}
	if st.uids != nil {
		return s.mountShifted(st, options, target)
	}
	return thread.Own(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Chdir(s.dir); err != nil {
			return &os.PathError{Op: "chdir", Path: s.dir, Err: err}
		}
		return os.NewSyscallError("mount overlay", unix.Mount("overlay", target, "overlay", flags, strings.Join(options, ",")))
	})
}
