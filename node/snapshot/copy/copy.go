// Package copy is the snapshot driver for hosts whose file system carries no
// overlayfs: a snapshot's tree is a folder of its own, and a mount of it a
// bind mount.
//
// On disk:
//
//	trees/<id>/fs            the whole tree of an Active snapshot, or of a layer that was one
//	trees/<id>/cloned        what tells whether its files have been written to
//	trees/<id>/layer         a layer that was ingested: what it changes, as node/folder has it
//	trees/<id>/tree-<boot>   the whole tree that such a layer shows
//	trees/empty              what is below everything
//
// Ingest only unpacks, so that a chain of a hundred layers costs no more than
// its layers. The tree of a layer is made when somebody first stands on it or
// looks at it: from the nearest whole tree below, as hard links or a snapshot
// of the file system, for it never changes. It is valid until the next boot;
// then it is made again, because it was not synced.
//
// Prepare clones the whole tree: as a snapshot of a btrfs subvolume, in no
// time; with an inode for each file that shares its blocks (reflink); or by
// copying. It costs as much as that does; see Method. What was changed is found
// by comparing two trees.
//
// An id is never used again. A folder belongs to a snapshot once a record
// names it; Open sweeps away folders that no record names. Records carry the
// boot in which their files were made until these are synced: after another
// boot a layer is dropped, and an Active snapshot is cloned anew.
package copy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/clock"
	"berth/base/errs"
	"berth/base/kv"
	"berth/node/folder"
	"berth/node/snapshot"
)

const (
	bucket      = "copy"
	emptyFolder = "empty"
	ownTree     = "fs"
	layerFolder = "layer"
)

// Config says where a Store lives.
type Config struct {
	Dir    string // trees/ is made in it
	DB     *kv.DB
	Log    *slog.Logger
	Method Method
	// MaxLayer bounds the bytes that one layer may unpack to; 256 GiB when 0.
	MaxLayer int64
}

// Store keeps snapshots as whole trees.
type Store struct {
	dir      string // of trees
	dirfd    int
	method   Method
	log      *slog.Logger
	boot     string
	umask    uint32
	maxLayer int64
	records  *snapshot.Ledger

	stop    context.CancelFunc
	work    sync.WaitGroup
	sweeper *snapshot.Queue[string] // what is to be deleted in trees/
	syncing sync.Mutex              // one Sync at a time
	users   snapshot.UserNamespaces

	mu     sync.Mutex
	making map[string]*making // trees that are being made, by id
}

var _ snapshot.Store = (*Store)(nil)

// Open opens the store in c.Dir and makes it if need be. It returns before
// leftovers of a crash are deleted. Unsupported: c.Method does not work there.
func Open(ctx context.Context, c Config) (*Store, error) {
	s := &Store{
		dir: filepath.Join(c.Dir, "trees"), method: c.Method, log: c.Log, maxLayer: cmp.Or(c.MaxLayer, 256<<30),
		sweeper: snapshot.NewQueue[string](), making: map[string]*making{},
	}
	if err := s.open(ctx, c); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", errs.Full(err))
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, c Config) (err error) {
	if err := Probe(ctx, c.Dir, c.Method); err != nil {
		return err
	}
	if s.boot, err = clock.Boot(); err != nil {
		return err
	}
	if s.umask, err = folder.Umask(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, emptyFolder), 0o755); err != nil { //nolint:gosec // it is the root of a container
		return err
	}
	if err := os.Chmod(filepath.Join(s.dir, emptyFolder), 0o755); err != nil { //nolint:gosec // it is the root of a container
		return err
	}
	if err := os.Chmod(s.dir, 0o700); err != nil { // set-user-id files of images lie here
		return err
	}
	lost := func(rec *snapshot.Record) bool { return rec.Kind == snapshot.KindCommitted && s.isOld(rec) }
	if s.records, err = snapshot.OpenLedger(c.DB, bucket, lost, s.log); err != nil {
		return err
	}
	if s.dirfd, err = unix.Open(s.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", s.dir, err)
	}
	leftovers, err := s.leftovers()
	if err != nil {
		return errors.Join(err, unix.Close(s.dirfd))
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.work.Go(func() { s.sweep(life) })
	s.work.Go(func() { s.syncLoop(life) })
	s.sweeper.Add(leftovers...)
	return nil
}

// Close stops the background work. What is still to be deleted is found again
// by the next Open.
func (s *Store) Close() error {
	s.stop()
	s.work.Wait()
	s.users.Close()
	return unix.Close(s.dirfd)
}

// isOld says whether the record's files may have been lost with the power.
func (s *Store) isOld(rec *snapshot.Record) bool { return rec.Boot != "" && rec.Boot != s.boot }

// leftovers lists what no record names, and trees of earlier boots. It moves
// aside the trees of Active snapshots that were lost.
func (s *Store) leftovers() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	named := map[string]*snapshot.Record{}
	for _, rec := range s.records.All() {
		named[rec.ID] = rec
	}
	var found []string
	for _, e := range entries {
		name := e.Name()
		rec := named[name]
		switch {
		case name == emptyFolder:
		case rec == nil && (folder.IsAside(name) || s.records.Met(name) == nil):
			found = append(found, name)
		case rec != nil:
			stale, err := s.stale(rec)
			if err != nil {
				return nil, err
			}
			found = append(found, stale...)
		}
	}
	return found, nil
}

// stale lists what a snapshot has no more use for.
func (s *Store) stale(rec *snapshot.Record) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, rec.ID))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		name := rec.ID + "/" + e.Name()
		lost := e.Name() == ownTree && s.isOld(rec)
		if lost {
			s.log.Warn("what was written to a snapshot was lost with the power", "key", rec.Key)
			aside := rec.ID + "/aside-" + s.records.NewID()
			if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(s.dir, aside)); err != nil {
				return nil, err
			}
			name = aside
		}
		old := strings.HasPrefix(e.Name(), treePrefix) && e.Name() != s.treeName()
		if lost || old || folder.IsAside(e.Name()) || e.Name() == newTree {
			found = append(found, name)
		}
	}
	if s.isOld(rec) {
		s.records.Change(rec, func(r *snapshot.Record) { r.Boot = "" })
	}
	return found, nil
}

// Stat describes a snapshot.
func (s *Store) Stat(ctx context.Context, key snapshot.Key) (snapshot.Info, error) {
	return s.records.Stat(ctx, key)
}

// SetLabels lays labels over those of a snapshot.
func (s *Store) SetLabels(ctx context.Context, key snapshot.Key, labels map[string]string) error {
	return s.records.SetLabels(ctx, key, labels)
}

// Walk calls fn for each snapshot in the order of keys.
func (s *Store) Walk(ctx context.Context, fn func(snapshot.Info) error) error {
	return s.records.Walk(ctx, fn)
}
