package volume

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// List returns volumes by name. Filters: name label label! driver dangling
// anonymous.
func (s *Set) List(_ context.Context, filter spec.Filter) ([]spec.Volume, error) {
	fits, err := match(filter, "name", "label", "label!", "driver", "dangling", "anonymous")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(s.sorted(), func(v spec.Volume) bool { return !fits(v) }), nil
}

func (s *Set) sorted() []spec.Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]spec.Volume, 0, len(s.entries))
	for _, e := range s.entries {
		if e.going {
			continue
		}
		list = append(list, copyOf(e.volume))
	}
	slices.SortFunc(list, func(a, b spec.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// match turns a filter with some of the allowed keys into a question. A
// value of every key must fit; of labels, all must.
func match(filter spec.Filter, allowed ...string) (func(spec.Volume) bool, error) {
	for key, values := range filter {
		if !slices.Contains(allowed, key) {
			return nil, errs.New(errs.Invalid, "volumes cannot be filtered by %q", key)
		}
		if key == "dangling" || key == "anonymous" {
			for _, value := range values {
				if _, err := truth(value); err != nil {
					return nil, err
				}
			}
		}
	}
	return func(v spec.Volume) bool {
		for key, values := range filter {
			one := func(value string) bool { return fitsOne(v, key, value) }
			every := strings.HasPrefix(key, "label")
			if every && slices.ContainsFunc(values, func(value string) bool { return !one(value) }) ||
				!every && len(values) > 0 && !slices.ContainsFunc(values, one) {
				return false
			}
		}
		return true
	}, nil
}

func fitsOne(v spec.Volume, key, value string) bool {
	switch key {
	case "name":
		return strings.Contains(v.Name, value)
	case "driver":
		return v.Driver == value
	case "dangling":
		yes, _ := truth(value)
		return yes == (len(v.UsedBy) == 0)
	case "anonymous":
		yes, _ := truth(value)
		return yes == v.Anonymous
	case "label", "label!":
		name, want, exact := strings.Cut(value, "=")
		have, found := v.Labels[name]
		return (found && (!exact || have == want)) == (key == "label")
	}
	return true // of Prune, and answered there
}

func truth(value string) (bool, error) {
	yes, err := strconv.ParseBool(value)
	if err != nil {
		return false, errs.New(errs.Invalid, "%q is neither true nor false", value)
	}
	return yes, nil
}

// Usage counts the disk that the volumes take. What lies on a device of a
// volume's own is not counted.
func (s *Set) Usage(ctx context.Context) (spec.DiskShare, error) {
	var share spec.DiskShare
	for _, v := range s.sorted() {
		share.Total++
		size := int64(0)
		if len(v.Options) == 0 {
			var err error
			if size, err = diskUsage(ctx, v.Path); err != nil {
				return spec.DiskShare{}, err
			}
		}
		share.Size += size
		if len(v.UsedBy) > 0 {
			share.Active++
		} else {
			share.Reclaimable += size
		}
	}
	return share, nil
}

// Size counts the disk that one volume takes.
func (s *Set) Size(ctx context.Context, name string) (int64, error) {
	v, err := s.Get(ctx, name)
	if err != nil {
		return 0, err
	}
	return diskUsage(ctx, v.Path)
}

// diskUsage counts blocks, a file with several names once.
func diskUsage(ctx context.Context, dir string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil // gone meanwhile
		}
		if key := (inode{st.Dev, st.Ino}); st.Nlink == 1 || !seen[key] {
			seen[key] = st.Nlink > 1
			total += st.Blocks * 512
		}
		return ctx.Err()
	})
	return total, err
}
