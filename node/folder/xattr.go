package folder

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"berth/base/errs"

	"golang.org/x/sys/unix"
)

// Xattr is an extended attribute under the name that the tree's owner sees.
type Xattr struct {
	Name  string
	Value []byte
}

// overlayfs keeps its own in these. Those that belong to the tree's owner lie
// under an escaped name, which overlayfs shows unescaped to who looks through
// a mount: so an image can hold the layers of another overlay.
const (
	overlayXattr = "trusted.overlay."
	escapedXattr = "trusted.overlay.overlay."
	opaqueXattr  = "trusted.overlay.opaque"
)

// diskXattr is the name under which the xattr of a tar lies on disk.
func diskXattr(name string) string {
	if rest, ok := strings.CutPrefix(name, overlayXattr); ok {
		return escapedXattr + rest
	}
	return name
}

// treeXattr is the other way round; ok is false for overlayfs's own.
func treeXattr(name string) (_ string, ok bool) {
	if rest, escaped := strings.CutPrefix(name, escapedXattr); escaped {
		return overlayXattr + rest, true
	}
	return name, !strings.HasPrefix(name, overlayXattr)
}

// isOpaque says whether the folder hides what layers below have in it.
func isOpaque(path string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(path, opaqueXattr, value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// listXattrs lists the xattrs of path, a symbolic link itself, in order.
func listXattrs(path string) ([]string, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Llistxattr(path, buf)
		switch {
		case err == unix.ERANGE && size < 1<<20:
			continue
		case errs.IsAny(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("list xattrs of %s: %w", path, err)
		}
		var names []string
		for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
			if len(name) > 0 {
				names = append(names, string(name))
			}
		}
		slices.Sort(names)
		return names, nil
	}
}

func getXattr(path, name string) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Lgetxattr(path, name, buf)
		if err == unix.ERANGE && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// Xattrs lists those of the tree's owner, in the order of their names on disk.
func (e *Entry) Xattrs() ([]Xattr, error) {
	path := e.procPath()
	names, err := listXattrs(path)
	if err != nil {
		return nil, err
	}
	var all []Xattr
	for _, disk := range names {
		name, ok := treeXattr(disk)
		if e.whole {
			name = disk
		} else if !ok {
			continue
		}
		value, err := getXattr(path, disk)
		if errs.IsAny(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("xattr %s of %s: %w", disk, e.Path, err)
		}
		all = append(all, Xattr{name, value})
	}
	return all, nil
}
