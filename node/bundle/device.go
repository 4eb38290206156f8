package bundle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// addLimits fills in resources and devices.
func addLimits(s *specs.Spec, in Input) error {
	c := in.Container.Config
	limits, err := Resources(c.Resources, in.Host)
	if err != nil {
		return err
	}
	s.Linux.Resources = limits
	if c.Security.Privileged {
		limits.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		s.Linux.Devices, err = hostDevices("/dev", "/dev")
		return err
	}
	// Runtimes allow and make the devices that every container has by themselves.
	limits.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range c.Devices {
		found, rules, err := devices(d)
		if err != nil {
			return err
		}
		s.Linux.Devices = append(s.Linux.Devices, found...)
		limits.Devices = append(limits.Devices, rules...)
	}
	return nil
}

// devices are the nodes that one request stands for, and the rules that let
// the container use them.
func devices(d spec.Device) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	access := firstOf(d.Permissions, "rwm")
	if strings.Trim(access, "rwm") != "" {
		return nil, nil, errs.New(errs.Invalid, "device %s: permissions %q are not of r, w and m", d.Path, access)
	}
	target := firstOf(d.Target, d.Path)
	if !filepath.IsAbs(d.Path) || !filepath.IsAbs(target) {
		return nil, nil, errs.New(errs.Invalid, "device %s: not an absolute path", d.Path)
	}
	source, err := filepath.EvalSymlinks(d.Path)
	if err != nil {
		return nil, nil, errs.New(errs.Invalid, "device %s: %w", d.Path, err)
	}
	var list []specs.LinuxDevice
	switch info, err := os.Stat(source); {
	case err != nil:
		return nil, nil, errs.New(errs.Invalid, "device %s: %w", d.Path, err)
	case info.IsDir():
		if list, err = hostDevices(source, target); err != nil {
			return nil, nil, err
		}
	default:
		device, err := device(source, target)
		if err != nil {
			return nil, nil, errs.New(errs.Invalid, "%w", err)
		}
		list = append(list, device)
	}
	if len(list) == 0 {
		return nil, nil, errs.New(errs.Invalid, "device %s: no devices in this folder", d.Path)
	}
	rules := make([]specs.LinuxDeviceCgroup, len(list))
	for i := range list {
		rules[i] = specs.LinuxDeviceCgroup{Allow: true, Type: list[i].Type, Major: &list[i].Major, Minor: &list[i].Minor, Access: access}
	}
	return list, rules, nil
}

// errNoDevice: a file that is no device.
var errNoDevice = errors.New("not a device")

// device describes the node at path as one at target.
func device(path, target string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, &os.PathError{Op: "device", Path: path, Err: err}
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, &os.PathError{Op: "device", Path: path, Err: errNoDevice}
	}
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path: target, Type: kind,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}

// hostDevices are the devices under a folder of the host, as if under target;
// not those that every container has of its own.
func hostDevices(dir, target string) ([]specs.LinuxDevice, error) {
	var list []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile
		case err != nil:
			return err
		case entry.IsDir():
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/hugepages", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return filepath.SkipDir
			}
			return nil
		case path == "/dev/console", path == "/dev/ptmx":
			return nil
		}
		d, err := device(path, filepath.Join(target, strings.TrimPrefix(path, dir)))
		if errors.Is(err, errNoDevice) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		list = append(list, d)
		return err
	})
	return list, err
}
