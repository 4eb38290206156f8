package lazy

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// mountFUSE makes a FUSE mount that is attached nowhere: whoever has its
// descriptor can use it, and it ends with its last user. device is where its
// requests come from.
func mountFUSE() (device, mount int, err error) {
	device, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, errs.New(errs.Unsupported, "no FUSE here: %w", os.NewSyscallError("open /dev/fuse", err))
	}
	if mount, err = mountDevice(device); err != nil {
		_ = unix.Close(device)
		return -1, -1, errs.New(errs.Unsupported, "mount FUSE: %w", err)
	}
	return device, mount, nil
}

func mountDevice(device int) (int, error) {
	fsfd, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fsfd)
	for _, option := range [][2]string{
		{"source", "berth-lazy"}, {"subtype", "berth-lazy"}, {"fd", strconv.Itoa(device)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"},
	} {
		if err := unix.FsconfigSetString(fsfd, option[0], option[1]); err != nil {
			return -1, fmt.Errorf("option %s: %w", option[0], err)
		}
	}
	if err := unix.FsconfigSetFlag(fsfd, "allow_other"); err != nil {
		return -1, fmt.Errorf("option allow_other: %w", err)
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("create: %w%s", err, kernelSays(fsfd))
	}
	mount, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	return mount, os.NewSyscallError("fsmount", err)
}

// kernelSays is what the kernel logged on a mount that failed.
func kernelSays(fsfd int) string {
	buf := make([]byte, 1024)
	n, err := unix.Read(fsfd, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}
