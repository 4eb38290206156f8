package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

// Remove deletes a volume and its data. errs.Conflict while a container uses
// it; errs.NotFound, but with force.
func (s *Set) Remove(ctx context.Context, name string, force bool) error {
	e, err := s.find(name)
	if force && errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	e.work.Lock()
	defer e.work.Unlock()
	if err := s.takeOut(e); err != nil {
		return err
	}
	err = s.destroy(ctx, e)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		e.going = false
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	delete(s.entries, name)
	return nil
}

// takeOut makes sure that nobody uses the volume, and that from now on
// nobody can. The name stays taken until the folder is gone.
func (s *Set) takeOut(e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := e.volume.Name
	if s.entries[name] != e || e.going {
		return errs.New(errs.NotFound, "there is no volume %q", name)
	}
	if users := e.volume.UsedBy; len(users) > 0 {
		return errs.New(errs.Conflict, "volume %s is in use by %s", name, strings.Join(short(users), ", "))
	}
	e.going = true
	return nil
}

func short(ids []string) []string {
	out := slices.Clone(ids)
	for i, id := range out {
		out[i] = id[:min(12, len(id))]
	}
	return out
}

// destroy deletes folder and record so that a crash leaves either the
// volume, or something that the next Open finishes.
func (s *Set) destroy(ctx context.Context, e *entry) error {
	name := e.volume.Name
	if err := unmount(e.volume.Path); err != nil {
		return err
	}
	folder, going := filepath.Join(s.dir, name), filepath.Join(s.dir, removing+name)
	if err := noMounts(folder); err != nil {
		return err
	}
	if err := ignoreMissing(os.Rename(folder, going)); err != nil {
		return err
	}
	err := s.db.Update(ctx, func(tx *kv.Tx) error { return tx.Delete(bucket, name) })
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Rename(going, folder)))
	}
	return os.RemoveAll(going)
}

// finishRemoval goes on where destroy was cut off.
func (s *Set) finishRemoval(ctx context.Context, name string) error {
	going := filepath.Join(s.dir, removing+name)
	if err := noMounts(going); err != nil {
		return err
	}
	delete(s.entries, name)
	if err := s.db.Update(ctx, func(tx *kv.Tx) error { return tx.Delete(bucket, name) }); err != nil {
		return err
	}
	return os.RemoveAll(going)
}

// noMounts guards what is about to be deleted: nothing behind a mount is ours.
func noMounts(folder string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(folder))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return errs.New(errs.Conflict, "%s is a mount within the volume: unmount it first", mounts[0].Mountpoint)
	}
	return nil
}

// Prune removes the volumes that no container uses: the anonymous ones, or
// all. Filters: label label! all.
func (s *Set) Prune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error) {
	pruned := spec.Pruned{Removed: []string{}}
	if values := filter["all"]; len(values) > 0 {
		yes, err := truth(values[0])
		if err != nil {
			return pruned, err
		}
		all = all || yes
	}
	fits, err := match(filter, "label", "label!", "all")
	if err != nil {
		return pruned, err
	}
	for _, v := range s.sorted() {
		if len(v.UsedBy) > 0 || !all && !v.Anonymous || !fits(v) {
			continue
		}
		size := int64(0)
		if len(v.Options) == 0 {
			if size, err = diskUsage(ctx, v.Path); err != nil {
				return pruned, fmt.Errorf("prune: volume %s: %w", v.Name, err)
			}
		}
		switch err := s.Remove(ctx, v.Name, false); {
		case errors.Is(err, errs.Conflict), errors.Is(err, errs.NotFound): // somebody was faster
		case err != nil:
			return pruned, err
		default:
			pruned.Removed = append(pruned.Removed, v.Name)
			pruned.Reclaimed += size
		}
	}
	return pruned, nil
}
