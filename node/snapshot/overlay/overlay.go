// Package overlay is the snapshot driver on the kernel's overlayfs.
//
// On disk:
//
//	layers/<id>/fs     a layer, or the writable part of an Active snapshot
//	layers/<id>/work   what overlayfs needs beside a writable part
//	layers/empty/…     the lowest lowers of every mount
//	links/ab/cdef…     files of layers that others may have too: see variants
//
// An id is never used again, so that a folder needs no renaming: it is made in
// its final place, belongs to a snapshot once a record names it, and is
// deleted after that record is gone. Open sweeps away folders that no record
// names. A View has no folder.
//
// Records lie in bucket "snapshot" under their id. They are written with
// kv.DB.Later: the next durable record of anybody takes them along. A layer's
// files are synced in the background; until then its record carries the id of
// the machine's boot, and after another boot it is dropped.
//
// Deleted files are whiteouts (character device 0:0), folders that hide what
// is below have trusted.overlay.opaque=y. overlayfs ignores that on the root
// of a layer, so the record keeps it and the chain ends there. Mounts are made
// with metacopy, redirect_dir and index off: all of a snapshot's change is in
// its own folder.
package overlay

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/folder"
	"berth/node/snapshot"
)

const (
	bucket      = "snapshot"
	emptyFolder = "empty"
	emptyLayer  = "empty/lower" // below every tree
	emptyOther  = "empty/other" // overlayfs takes no folder twice
)

// Config says where a Store lives.
type Config struct {
	Dir string // layers/ is made in it
	DB  *kv.DB
	Log *slog.Logger
	// MaxLayer bounds the bytes that one layer may unpack to; 256 GiB when 0.
	MaxLayer int64
}

// Store keeps snapshots as folders for overlayfs.
type Store struct {
	records *snapshot.Ledger

	dir      string // of layers
	dirfd    int
	log      *slog.Logger
	boot     string
	umask    uint32
	maxLayer int64

	stop     context.CancelFunc
	work     sync.WaitGroup
	sweeper  *snapshot.Queue[string] // ids of folders to delete
	closer   *snapshot.Queue[int]    // descriptors whose closing takes time
	sharer   *snapshot.Queue[fresh]  // layers whose files later ones may share
	syncing  sync.Mutex              // one Sync at a time
	users    snapshot.UserNamespaces
	variants *variants
}

var _ snapshot.Store = (*Store)(nil)

// Open opens the store in c.Dir and makes it if need be. It returns before
// leftovers of a crash are deleted.
func Open(ctx context.Context, c Config) (*Store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	umask, err := folder.Umask()
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s := &Store{
		dir: filepath.Join(c.Dir, "layers"), log: c.Log, umask: umask,
		boot: strings.TrimSpace(string(boot)), maxLayer: cmp.Or(c.MaxLayer, 256<<30),
		sweeper: snapshot.NewQueue[string](), closer: snapshot.NewQueue[int](), sharer: snapshot.NewQueue[fresh](),
	}
	for _, empty := range []string{emptyLayer, emptyOther} {
		if err := os.MkdirAll(filepath.Join(s.dir, empty), 0o755); err != nil {
			return nil, fmt.Errorf("open snapshots: %w", errs.Full(err))
		}
	}
	if err := os.Chmod(s.dir, 0o700); err != nil { // set-user-id files of images lie here
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	lost := func(rec *snapshot.Record) bool { return rec.Boot != "" && rec.Boot != s.boot }
	if s.records, err = snapshot.OpenLedger(c.DB, bucket, lost, s.log); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	leftovers, err := s.leftovers()
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if s.variants, err = openVariants(c.Dir, s.dir, s.log); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if s.dirfd, err = unix.Open(s.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open snapshots: %s: %w", s.dir, err)
	}
	s.remakeUppers()
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.work.Go(func() {
		s.sweepLeftovers(life, leftovers)
		s.sweep(life)
	})
	s.work.Go(func() { s.share(life) })
	s.work.Go(func() { s.closeDescriptors(life) })
	s.work.Go(func() { s.syncLoop(life) })
	return s, nil
}

// Close stops the background work. What is still to be deleted is found again
// by the next Open.
func (s *Store) Close() error {
	s.stop()
	s.work.Wait()
	s.users.Close()
	s.variants.close()
	return unix.Close(s.dirfd)
}

// leftovers lists the folders that no record names.
func (s *Store) leftovers() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, rec := range s.records.All() {
		named[rec.ID] = true
	}
	var ids []string
	for _, e := range entries {
		name := e.Name()
		if folder.IsAside(name) || name != emptyFolder && !named[name] && s.records.Met(name) == nil {
			ids = append(ids, name)
		}
	}
	return ids, nil
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

// fs is the folder of the record's own files.
func (s *Store) fs(id string) string { return filepath.Join(s.dir, id, "fs") }
