package collect

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mounts are those on and below the folders <dir>/<id>.
func Mounts(dir string) Room {
	dir = filepath.Clean(dir)
	return Room{
		Name: "mounts",
		Found: func(context.Context) ([]string, error) {
			below, err := mountsBelow(dir)
			var ids []string
			for _, target := range below {
				if rest, ok := strings.CutPrefix(target, dir+"/"); ok {
					id, _, _ := strings.Cut(rest, "/")
					ids = append(ids, id)
				}
			}
			slices.Sort(ids)
			return slices.Compact(ids), err
		},
		Discard: func(_ context.Context, id string) error {
			below, err := mountsBelow(filepath.Join(dir, id))
			for _, target := range slices.Backward(below) { // the last mounted first
				if e := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil && !errors.Is(e, unix.EINVAL) {
					err = errors.Join(err, e)
				}
			}
			return err
		},
	}
}

// mountsBelow are the mount points on and below dir, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	var targets []string
	for _, info := range infos {
		targets = append(targets, info.Mountpoint)
	}
	return targets, err
}
