// Package volume holds the named and the anonymous volumes of one node.
//
//	<dir>/<name>/data      what a container sees
//	<dir>/<name>/filling   stands while data is being filled from an image
//	<dir>/.removing-<name> a volume that is going
//
// The truth is in memory and in the bucket "volume"; a folder with data but
// without a record is taken for a volume, so that a lost database loses no
// data. A volume with a device is a mount on its data, made for the first
// container that needs it and gone with the last; what is behind a mount is
// never removed.
//
// Locks: an entry's work is taken before the Set's mu.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

const (
	bucket   = "volume"
	removing = ".removing-"
	local    = "local" // the driver
)

// Set is the volumes of one node.
type Set struct {
	dir string
	db  *kv.DB
	log *slog.Logger

	mu      sync.Mutex
	entries map[string]*entry
}

// An entry is one volume.
type entry struct {
	work    sync.Mutex // held while its folder is mounted, filled or removed
	volume  spec.Volume
	holders map[string]bool // containers that hold its mount
	going   bool            // being removed; guarded by the Set's mu
}

// Open reads the volumes kept under dir and recorded in db, and finishes
// removals that were cut short.
func Open(ctx context.Context, dir string, db *kv.DB, log *slog.Logger) (*Set, error) {
	// Only root gets in: containers write set-user-id programs there, and files
	// that everybody may read. One that was made otherwise is mended.
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil { //nolint:gosec // a folder is entered
		return nil, fmt.Errorf("volumes: %w", err)
	}
	s := &Set{dir: dir, db: db, log: log, entries: map[string]*entry{}}
	err := db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, bucket, "", func(name string, v spec.Volume) error {
			s.entries[name] = &entry{volume: v, holders: map[string]bool{}}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("volumes: read records: %w", err)
	}
	if err := s.reconcile(ctx); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return s, nil
}

// reconcile makes folders and records agree.
func (s *Set) reconcile(ctx context.Context) error {
	folders, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, f := range folders {
		name := f.Name()
		if gone, ok := strings.CutPrefix(name, removing); ok {
			if err := s.finishRemoval(ctx, gone); err != nil {
				return err
			}
			continue
		}
		if s.entries[name] == nil && checkName(name) == nil && f.IsDir() {
			if err := s.adopt(ctx, name); err != nil {
				return err
			}
		}
	}
	for name, e := range s.entries {
		e.volume.Path = s.data(name) // the root may have moved
		if err := os.MkdirAll(e.volume.Path, 0o755); err != nil {
			return err
		}
		if mounted, err := mountinfo.Mounted(e.volume.Path); err != nil {
			return err
		} else if mounted { // by the node before this one
			for _, id := range e.volume.UsedBy {
				e.holders[id] = true
			}
		}
	}
	return nil
}

// adopt takes in a folder without a record: a volume whose making was cut
// short, or whose record was lost.
func (s *Set) adopt(ctx context.Context, name string) error {
	for _, empty := range []string{s.data(name), filepath.Join(s.dir, name)} {
		_ = os.Remove(empty) // fails where there is something to keep
	}
	info, err := os.Stat(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s.log.WarnContext(ctx, "volume without a record", "volume", name)
	v := spec.Volume{Name: name, Driver: local, Path: s.data(name), Created: info.ModTime()}
	s.entries[name] = &entry{volume: v, holders: map[string]bool{}}
	return s.db.Update(ctx, record(v))
}

func (s *Set) data(name string) string { return filepath.Join(s.dir, name, "data") }

func record(v spec.Volume) func(*kv.Tx) error {
	v = copyOf(v)
	return func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, v.Name, v) }
}

// copyOf shares nothing with the original.
func copyOf(v spec.Volume) spec.Volume {
	v.Labels, v.Options, v.UsedBy = maps.Clone(v.Labels), maps.Clone(v.Options), slices.Clone(v.UsedBy)
	return v
}

// find gives the entry of a name; errs.NotFound.
func (s *Set) find(name string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[name]; e != nil && !e.going {
		return e, nil
	}
	return nil, errs.New(errs.NotFound, "there is no volume %q", name)
}

// Get returns one volume; errs.NotFound.
func (s *Set) Get(_ context.Context, name string) (spec.Volume, error) {
	e, err := s.find(name)
	if err != nil {
		return spec.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return copyOf(e.volume), nil
}

// Reserve notes that a container uses the volume, so that it is not removed.
// It is recorded until Release, across restarts.
func (s *Set) Reserve(_ context.Context, name, container string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[name]
	if e == nil || e.going {
		return errs.New(errs.NotFound, "there is no volume %q", name)
	}
	s.reserve(e, container)
	return nil
}

// reserve needs no commit of its own: the container's record, which follows,
// carries it. The caller holds mu.
func (s *Set) reserve(e *entry, container string) {
	if slices.Contains(e.volume.UsedBy, container) {
		return
	}
	e.volume.UsedBy = append(e.volume.UsedBy, container)
	slices.Sort(e.volume.UsedBy)
	s.db.Later(record(e.volume))
}

// Release ends the container's use of the volume. Unknown ones are no error.
func (s *Set) Release(ctx context.Context, name, container string) error {
	err := s.Unmount(ctx, name, container)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[name]
	if e == nil || !slices.Contains(e.volume.UsedBy, container) {
		return nil
	}
	e.volume.UsedBy = slices.DeleteFunc(e.volume.UsedBy, func(id string) bool { return id == container })
	s.db.Later(record(e.volume))
	return nil
}

// now is cut to what JSON keeps.
func now() time.Time { return time.Now().UTC().Round(0) }
