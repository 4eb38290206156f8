package folder

import (
	"fmt"
	"slices"
	"strings"

	"berth/base/errs"

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
			if errs.IsAny(err, unix.ENOENT) {
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

// Fit makes the layer in the folder layer, just unpacked, one that stands on
// the folders below, topmost first. Implied folders look as below, and
// whiteouts go where there is nothing below: a folder of one layer only would
// show them.
func Fit(layer string, in Unpacked, below []string) error {
	for _, name := range in.Whited {
		_, found, err := Find(below, name)
		if err == nil && !found {
			err = dropAt(layer + "/" + name)
		}
		if err != nil {
			return err
		}
	}
	// Deepest first: copying to a folder does not change the times of another,
	// but a folder without search permission comes after what is in it.
	for _, name := range slices.Backward(in.Implied) {
		from, found, err := Find(below, name)
		if err == nil && found {
			err = CopyLooks(from, layer+"/"+name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropAt is dropWhiteouts for a folder whose times stay.
func dropAt(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open folder %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if err := dropWhiteouts(fd, "."); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(fd, ".", times, 0); err != nil {
		return fmt.Errorf("times of %s: %w", path, err)
	}
	return nil
}

// dropWhiteouts deletes the whiteouts in the folder name.
func dropWhiteouts(root int, name string) error {
	fd, err := openBeneath(root, name)
	if errs.IsAny(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP) {
		return nil // replaced by a later entry
	}
	if err != nil {
		return fmt.Errorf("open folder %s: %w", brief(name), err)
	}
	defer unix.Close(fd)
	names, err := Names(fd)
	for _, n := range names {
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err == nil && isWhiteout(&st) {
			err = unix.Unlinkat(fd, n, 0)
		}
	}
	if err != nil {
		return fmt.Errorf("whiteouts in %s: %w", brief(name), err)
	}
	return nil
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
		if err != nil && !errs.IsAny(err, unix.ENOTSUP, unix.ENODATA) {
			return fmt.Errorf("xattr %s of %s: %w", name, to, err)
		}
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("times of %s: %w", to, err)
	}
	return nil
}
