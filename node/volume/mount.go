package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Acquire reserves the volume for a container, mounts it if it has a device
// and is not mounted, and gives its folder on the host. It may be called
// again for the same container.
func (s *Set) Acquire(ctx context.Context, name, container string) (path string, err error) {
	e, err := s.find(name)
	if err != nil {
		return "", err
	}
	e.work.Lock()
	defer e.work.Unlock()
	s.mu.Lock()
	if s.entries[name] != e || e.going {
		s.mu.Unlock()
		return "", errs.New(errs.NotFound, "there is no volume %q", name)
	}
	s.reserve(e, container)
	v := copyOf(e.volume)
	s.mu.Unlock()

	if m, err := parseOptions(v.Options); err != nil {
		return "", fmt.Errorf("volume %s: %w", name, err)
	} else if m != nil {
		if err := m.mount(ctx, v.Path); err != nil {
			return "", fmt.Errorf("volume %s: %w", name, err)
		}
		e.holders[container] = true
	}
	return v.Path, nil
}

// Unmount lets go of the mount that Acquire made, when no other container
// holds it; the reservation stays. For containers that stopped.
func (s *Set) Unmount(_ context.Context, name, container string) error {
	e, err := s.find(name)
	if err != nil {
		return err
	}
	e.work.Lock()
	defer e.work.Unlock()
	if !e.holders[container] {
		return nil
	}
	delete(e.holders, container)
	if len(e.holders) > 0 {
		return nil
	}
	if err := unmount(e.volume.Path); err != nil {
		e.holders[container] = true
		return fmt.Errorf("volume %s: %w", name, err)
	}
	return nil
}

func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // no mount, or none any more
			return nil
		case errors.Is(err, unix.EBUSY):
			err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// A device is what a volume's options ask to be mounted.
type device struct {
	kind, source string
	flags        uintptr
	data         []string
	propagation  uintptr
}

// parseOptions reads the options of a volume; nil where nothing is mounted.
func parseOptions(options map[string]string) (*device, error) {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if !slices.Contains([]string{"type", "device", "o"}, key) {
			return nil, errs.New(errs.Invalid, "option %q: there are type, device and o", key)
		}
	}
	d := device{kind: options["type"], source: options["device"]}
	for option := range strings.SplitSeq(options["o"], ",") {
		if option = strings.TrimSpace(option); option != "" {
			d.add(option)
		}
	}
	if d.kind == "" && d.source == "" && d.flags == 0 && len(d.data) == 0 {
		return nil, nil
	}
	bind := d.flags&unix.MS_BIND != 0
	switch {
	case d.source == "":
		return nil, errs.New(errs.Invalid, "options without a device")
	case d.kind == "" && !bind:
		return nil, errs.New(errs.Invalid, "a device without a type")
	case bind && !strings.HasPrefix(d.source, "/"):
		return nil, errs.New(errs.Invalid, "a bind of %q, which is not an absolute path", d.source)
	}
	return &d, nil
}

func (d *device) add(option string) {
	set := map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "mand": unix.MS_MANDLOCK,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
		"strictatime": unix.MS_STRICTATIME, "lazytime": unix.MS_LAZYTIME, "silent": unix.MS_SILENT,
		"bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC,
	}
	clear := map[string]uintptr{
		"rw": unix.MS_RDONLY, "suid": unix.MS_NOSUID, "dev": unix.MS_NODEV, "exec": unix.MS_NOEXEC,
		"async": unix.MS_SYNCHRONOUS, "atime": unix.MS_NOATIME, "diratime": unix.MS_NODIRATIME, "loud": unix.MS_SILENT,
	}
	spread := map[string]uintptr{
		"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
		"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	}
	switch {
	case set[option] != 0:
		d.flags |= set[option]
	case clear[option] != 0:
		d.flags &^= clear[option]
	case spread[option] != 0:
		d.propagation = spread[option]
	case option == "defaults", option == "auto", option == "noauto", option == "_netdev", option == "nofail":
		// for mount(8), not for the kernel
	default:
		d.data = append(d.data, option)
	}
}

// mount mounts the device on target, unless something is there.
func (d *device) mount(ctx context.Context, target string) error {
	if mounted, err := mountinfo.Mounted(target); mounted || err != nil {
		return err
	}
	data, err := d.resolve(ctx)
	if err != nil {
		return err
	}
	if err := unix.Mount(d.source, target, d.kind, d.flags, data); err != nil {
		return mountError(d, err)
	}
	undone := func(err error) error { return errors.Join(mountError(d, err), unmount(target)) }
	if d.flags&unix.MS_BIND != 0 && d.flags&^(unix.MS_BIND|unix.MS_REC) != 0 { // the kernel takes a bind's flags in a second step
		if err := unix.Mount("", target, "", d.flags&^unix.MS_REC|unix.MS_REMOUNT, ""); err != nil {
			return undone(err)
		}
	}
	if d.propagation != 0 {
		if err := unix.Mount("", target, "", d.propagation, ""); err != nil {
			return undone(err)
		}
	}
	return nil
}

// resolve finds the address behind addr=name, which the kernel cannot.
func (d *device) resolve(ctx context.Context) (string, error) {
	data := slices.Clone(d.data)
	for i, option := range data {
		name, host, _ := strings.Cut(option, "=")
		if name != "addr" || net.ParseIP(host) != nil {
			continue
		}
		found, err := net.DefaultResolver.LookupIPAddr(ctx, host)
		if err != nil || len(found) == 0 {
			return "", errs.New(errs.Unavailable, "mount %s: find %s: %w", d.source, host, err)
		}
		data[i] = "addr=" + found[0].String()
	}
	return strings.Join(data, ","), nil
}

func mountError(d *device, err error) error {
	kind := errs.Internal
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTBLK), errors.Is(err, unix.ENOTDIR):
		kind = errs.Invalid
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH):
		kind = errs.Unavailable
	case errors.Is(err, os.ErrPermission):
		kind = errs.Denied
	}
	return errs.New(kind, "mount %s of type %q: %w", d.source, d.kind, err)
}
