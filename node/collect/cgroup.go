package collect

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/moby/sys/mountinfo"
)

var containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Cgroups are those of containers below parent, a path in every hierarchy.
// Only empty ones go: a process in one belongs to somebody.
func Cgroups(parent string) Room {
	return Room{
		Name: "cgroups",
		Found: func(ctx context.Context) ([]string, error) {
			var ids []string
			err := eachHierarchy(func(root string) error {
				names, err := Names(filepath.Join(root, parent))(ctx)
				for _, name := range names {
					if containerID.MatchString(name) {
						ids = append(ids, name)
					}
				}
				return err
			})
			slices.Sort(ids)
			return slices.Compact(ids), err
		},
		Discard: func(_ context.Context, id string) error {
			return eachHierarchy(func(root string) error {
				return removeCgroup(filepath.Join(root, parent, id))
			})
		},
	}
}

func eachHierarchy(fn func(root string) error) error {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	for _, info := range infos {
		err = errors.Join(err, fn(info.Mountpoint))
	}
	return err
}

// removeCgroup removes a cgroup and those below it.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	if e := os.Remove(dir); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}
