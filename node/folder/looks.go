package folder

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Find looks for the folder name in the tree that the folders dirs make,
// topmost first, and returns its path in the one that shows it.
func Find(dirs []string, name string) (path string, found bool, err error) {
	for _, dir := range dirs {
		hidden, missing := false, false
		for part := range strings.SplitSeq(name, "/") {
			if part == "." {
				break
			}
			dir += "/" + part
			var st unix.Stat_t
			err := unix.Lstat(dir, &st)
			if isAny(err, unix.ENOENT) {
				missing = true
				break
			}
			if err != nil {
				return "", false, fmt.Errorf("look up %s: %w", dir, err)
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return "", false, nil // deleted or replaced here
			}
			hidden = hidden || isOpaque(dir)
		}
		if !missing {
			return dir, true, nil
		}
		if hidden {
			return "", false, nil
		}
	}
	return "", false, nil
}

// CopyLooks gives the folder to the mode, owner, times and xattrs of the
// folder from, but for those of overlayfs.
func CopyLooks(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return fmt.Errorf("look at %s: %w", from, err)
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("own %s: %w", to, err)
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("mode of %s: %w", to, err)
	}
	attrs, err := listXattrs(from)
	if err != nil {
		return err
	}
	for _, name := range attrs {
		if _, own := treeXattr(name); !own {
			continue
		}
		value, err := getXattr(from, name)
		if err == nil {
			err = unix.Lsetxattr(to, name, value, 0)
		}
		if err != nil && !isAny(err, unix.ENOTSUP, unix.ENODATA) {
			return fmt.Errorf("xattr %s of %s: %w", name, to, err)
		}
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("times of %s: %w", to, err)
	}
	return nil
}
