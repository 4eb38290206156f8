package keeper

import (
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func pidfdInfo(fd int, info *unix.PidfdInfo) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(info)))
	if errno != 0 {
		return errno
	}
	return nil
}

// parseStat returns the wait status of a zombie.
func parseStat(stat string) (status int, ok bool) {
	_, rest, found := cutLast(stat, ") ") // the name before it may hold anything
	fields := strings.Fields(rest)
	if !found || len(fields) < 50 || fields[0] != "Z" {
		return 0, false
	}
	status, err := strconv.Atoi(fields[49])
	return status, err == nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
