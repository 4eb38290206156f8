package lcfs

import (
	"fmt"
	"os"
	"strings"

	"berth/base/errs"

	"golang.org/x/sys/unix"
)

// mountFS makes a mount of a file system that is attached nowhere, by the
// interface of descriptors. configure sets its parameters.
func mountFS(kind string, attributes int, configure func(fsfd int) error, create func(fsfd int) error) (int, error) {
	fsfd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen "+kind, err)
	}
	defer unix.Close(fsfd)
	if err := configure(fsfd); err != nil {
		return -1, fmt.Errorf("configure %s: %w%s", kind, err, kernelSays(fsfd))
	}
	if err := create(fsfd); err != nil {
		return -1, fmt.Errorf("create %s: %w%s", kind, err, kernelSays(fsfd))
	}
	mount, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return -1, os.NewSyscallError("fsmount "+kind, err)
	}
	return mount, nil
}

// attach puts a mount that is attached nowhere on target.
func attach(mount int, target string) error {
	err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "mount on", Path: target, Err: err}
	}
	return nil
}

// set sets one parameter, "name=value" or a flag.
func set(fsfd int, option string) error {
	var err error
	if name, value, ok := strings.Cut(option, "="); ok {
		err = unix.FsconfigSetString(fsfd, name, value)
	} else {
		err = unix.FsconfigSetFlag(fsfd, option)
	}
	if err != nil {
		return fmt.Errorf("option %s: %w", option, err)
	}
	return nil
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

// mountImage mounts the EROFS image at path, which is not longer than the 255
// bytes that a parameter takes.
func mountImage(path string, loop bool) (int, error) {
	if loop {
		device, err := attachLoop(path)
		if err != nil {
			return -1, err
		}
		defer device.Close() // the mount keeps it; it goes with the mount
		path = device.Name()
	}
	return mountFS("erofs", unix.MOUNT_ATTR_RDONLY, func(fsfd int) error {
		if err := set(fsfd, "ro"); err != nil {
			return err
		}
		return set(fsfd, "source="+path)
	}, unix.FsconfigCreate)
}

// attachLoop makes a loop device of the file at path, which goes away with its
// last user.
func attachLoop(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("find a loop device", err)
		}
		device, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		err = configureLoop(device, file)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errs.IsAny(err, unix.EBUSY) { // else somebody else was faster
			return nil, os.NewSyscallError("configure loop device", err)
		}
	}
	return nil, unix.EBUSY
}

func openLoop(n int) (*os.File, error) {
	name := fmt.Sprintf("/dev/loop%d", n)
	device, err := os.OpenFile(name, os.O_RDWR, 0)
	if !os.IsNotExist(err) {
		return device, err
	}
	// A /dev that nobody looks after.
	const loopMajor = 7
	if err := unix.Mknod(name, unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !os.IsExist(err) {
		return nil, &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	return os.OpenFile(name, os.O_RDWR, 0)
}

func configureLoop(device, file *os.File) error {
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: 4096}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	err := unix.IoctlLoopConfigure(int(device.Fd()), &config)
	if errs.IsAny(err, unix.EINVAL) { // no direct I/O on this file system
		config.Size = 0
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
	}
	return err
}
