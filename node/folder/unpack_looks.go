package folder

import (
	"archive/tar"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

const paxXattr = "SCHILY.xattr."

func (u *unpacker) setXattrs(dirfd int, base string, h *tar.Header) error {
	for record, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(record, paxXattr); ok {
			if err := u.setXattr(dirfd, base, diskXattr(name), value); err != nil {
				return err
			}
		}
	}
	return nil
}

// setXattr sets one xattr. What this file system cannot keep is left out, as
// every unpacker does: images carry labels of other systems' security.
func (u *unpacker) setXattr(dirfd int, base, name, value string) error {
	err := unix.Lsetxattr(procPath(dirfd, base), name, []byte(value), 0)
	switch {
	case err == nil || errs.IsAny(err, unix.ENOTSUP):
		return nil
	case errs.IsAny(err, unix.EPERM) && !strings.HasPrefix(name, "security."):
		return nil // user xattrs of links and devices, which Linux does not keep
	case errs.IsAny(err, unix.EINVAL, unix.ERANGE, unix.E2BIG):
		return errs.New(errs.Invalid, "xattr %s: %w", brief(name), err)
	}
	return fmt.Errorf("set xattr %s: %w", brief(name), err)
}

func (u *unpacker) setTimes(dirfd int, base string, h *tar.Header) error {
	accessed := h.AccessTime
	if accessed.IsZero() {
		accessed = h.ModTime
	}
	times := [2]unix.Timespec{
		{Sec: accessed.Unix(), Nsec: int64(accessed.Nanosecond())},
		{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())},
	}
	if err := unix.UtimesNanoAt(dirfd, base, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
