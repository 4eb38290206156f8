package container

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Found lists the ids of containers of which there is something on disk, be
// there a container or not: a create or a remove that was cut off leaves it.
func (s *Set) Found(ctx context.Context) ([]string, error) {
	found := map[string]bool{}
	for _, dir := range []string{s.bundleDir(""), s.logDir(""), s.taskFile("")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			found[strings.TrimSuffix(e.Name(), partSuffix)] = true
		}
	}
	err := s.Snapshots.Walk(ctx, func(info snapshot.Info) error {
		if id := info.Labels[snapshotLabel]; id != "" && id == string(info.Key) {
			found[id] = true
		}
		return nil
	})
	return slices.Sorted(maps.Keys(found)), err
}

// Discard removes what Found has found of a container that there is not.
// errs.Conflict: there is.
func (s *Set) Discard(ctx context.Context, id string) error {
	if s.Claims(id) {
		return errs.New(errs.Conflict, "container %s is in use", id)
	}
	if !filepath.IsLocal(id) || filepath.Base(id) != id {
		return errs.New(errs.Invalid, "%q is no container's id", id)
	}
	if err := errors.Join(s.returnShm(id), s.dropEtc(ctx, id), s.dropTaskRoot(ctx, id)); err != nil {
		return err
	}
	for _, file := range []string{s.taskFile(id), s.taskFile(id) + partSuffix} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := s.discardSnapshot(ctx, snapshot.Key(id)); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	return clearDir(s.logDir(id))
}

// discardSnapshot removes a container's own snapshot. One that a client has
// made may have the same key.
func (s *Set) discardSnapshot(ctx context.Context, key snapshot.Key) error {
	info, err := s.Snapshots.Stat(ctx, key)
	if err != nil || info.Labels[snapshotLabel] != string(key) {
		return err
	}
	return s.Snapshots.Remove(ctx, key)
}
