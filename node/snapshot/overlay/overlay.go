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
//
// Lock order: Store.mu is the only lock held while calling kv, and nothing
// slow happens under it.
package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	dir      string // of layers
	dirfd    int
	db       *kv.DB
	log      *slog.Logger
	boot     string
	umask    uint32
	maxLayer int64

	stop     context.CancelFunc
	work     sync.WaitGroup
	sweeper  queue[string] // ids of folders to delete
	closer   queue[int]    // descriptors whose closing takes time
	sharer   queue[fresh]  // layers whose files later ones may share
	unsafe   chan struct{} // holds a token while some layer is not yet synced
	syncing  sync.Mutex    // one Sync at a time
	users    userNamespaces
	variants *variants

	mu       sync.RWMutex
	byKey    map[snapshot.Key]*record
	children map[snapshot.Key]int // by parent, whether or not the parent exists
	next     uint64
}

// record is one snapshot. It does not change: a changed copy takes its place.
type record struct {
	snapshot.Info
	ID     string          `json:"id"`
	Depth  int             `json:"depth"` // layers in the chain, with itself
	Opaque bool            `json:"opaque,omitempty"`
	Usage  *snapshot.Usage `json:"usage,omitempty"`
	Boot   string          `json:"boot,omitempty"`
	// claimed marks a key that is being made; nobody but the maker sees it.
	claimed bool
}

var _ snapshot.Store = (*Store)(nil)

// Open opens the store in c.Dir and makes it if need be. It returns before
// leftovers of a crash are deleted.
func Open(ctx context.Context, c Config) (*Store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	umask, err := readUmask()
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s := &Store{
		dir: filepath.Join(c.Dir, "layers"), db: c.DB, log: c.Log, umask: umask,
		boot: strings.TrimSpace(string(boot)), maxLayer: cmp.Or(c.MaxLayer, 256<<30),
		unsafe: make(chan struct{}, 1),
		byKey:  map[snapshot.Key]*record{}, children: map[snapshot.Key]int{},
	}
	for _, empty := range []string{emptyLayer, emptyOther} {
		if err := os.MkdirAll(filepath.Join(s.dir, empty), 0o755); err != nil {
			return nil, fmt.Errorf("open snapshots: %w", full(err))
		}
	}
	if err := os.Chmod(s.dir, 0o700); err != nil { // set-user-id files of images lie here
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if err := s.load(); err != nil {
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
	s.sweeper.init()
	s.closer.init()
	s.sharer.init()
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
	s.users.close()
	s.variants.close()
	return unix.Close(s.dirfd)
}

// load reads the records. Of two with one key, which a crash in the middle of
// a Remove and a Prepare can leave, the newer counts.
func (s *Store) load() error {
	var dropped []string
	err := s.db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, bucket, "", func(id string, rec record) error {
			n, err := parseID(id)
			if err != nil {
				return err
			}
			s.next = max(s.next, n+1)
			if rec.Boot != "" && rec.Boot != s.boot {
				s.log.Warn("layer was lost with the power", "key", rec.Key)
				dropped = append(dropped, id)
				return nil
			}
			if old := s.byKey[rec.Key]; old != nil {
				older, newer := old.ID, id
				if o, _ := parseID(old.ID); o > n {
					older, newer = id, old.ID
				}
				dropped = append(dropped, older)
				if newer != id {
					return nil
				}
			}
			s.byKey[rec.Key] = &rec
			if rec.Boot != "" {
				s.markUnsafe()
			}
			return nil
		})
	})
	for _, rec := range s.byKey {
		s.children[rec.Parent]++
	}
	for _, id := range dropped {
		s.forget(id)
	}
	return err
}

// leftovers lists the folders that no record names.
func (s *Store) leftovers() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	named := make(map[string]bool, len(s.byKey))
	for _, rec := range s.byKey {
		named[rec.ID] = true
	}
	var ids []string
	for _, e := range entries {
		name := e.Name()
		n, err := parseID(name)
		switch {
		case folder.IsAside(name):
		case err != nil || name == emptyFolder || named[name]:
			continue
		default:
			s.next = max(s.next, n+1)
		}
		ids = append(ids, name)
	}
	return ids, nil
}

// Stat describes a snapshot.
func (s *Store) Stat(ctx context.Context, key snapshot.Key) (snapshot.Info, error) {
	rec, err := s.find(key)
	if err != nil {
		return snapshot.Info{}, err
	}
	return rec.info(), ctx.Err()
}

// SetLabels lays labels over those of a snapshot.
func (s *Store) SetLabels(ctx context.Context, key snapshot.Key, labels map[string]string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.findLocked(key)
	if err != nil {
		return err
	}
	merged := snapshot.MergeLabels(rec.Labels, labels)
	if _, _, err := snapshot.IDMaps(merged); err != nil {
		return err
	}
	changed := *rec
	changed.Labels = merged
	s.put(&changed)
	return nil
}

// Walk calls fn for each snapshot in the order of keys.
func (s *Store) Walk(ctx context.Context, fn func(snapshot.Info) error) error {
	s.mu.RLock()
	recs := make([]*record, 0, len(s.byKey))
	for _, rec := range s.byKey {
		if !rec.claimed {
			recs = append(recs, rec)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(recs, func(a, b *record) int { return cmp.Compare(a.Key, b.Key) })
	for _, rec := range recs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(rec.info()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) find(key snapshot.Key) (*record, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.findLocked(key)
}

func (s *Store) findLocked(key snapshot.Key) (*record, error) {
	rec := s.byKey[key]
	if rec == nil || rec.claimed {
		return nil, errs.New(errs.NotFound, "no snapshot %.140q", string(key))
	}
	return rec, nil
}

// put makes rec the record of its key, in memory and soon on disk. mu is held.
func (s *Store) put(rec *record) {
	s.byKey[rec.Key] = rec
	s.db.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, rec.ID, rec) })
}

func (s *Store) forget(id string) {
	s.db.Later(func(tx *kv.Tx) error { return tx.Delete(bucket, id) })
}

// fs is the folder of the record's own files.
func (s *Store) fs(id string) string { return filepath.Join(s.dir, id, "fs") }

func (s *Store) newID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strconv.FormatUint(s.next, 36)
	s.next++
	return id
}

func parseID(id string) (uint64, error) { return strconv.ParseUint(id, 36, 64) }

func (r *record) info() snapshot.Info {
	info := r.Info
	info.Labels = snapshot.MergeLabels(nil, r.Labels) // the caller may change its copy
	return info
}

// full gives an error of a full disk its kind.
func full(err error) error {
	if isAny(err, unix.ENOSPC, unix.EDQUOT) {
		return errs.New(errs.Exhausted, "%w", err)
	}
	return err
}

func isAny(err error, kinds ...unix.Errno) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && slices.Contains(kinds, errno)
}

// readUmask asks the kernel, for umask(2) can only ask by changing it.
func readUmask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Umask:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return uint32(mask), err
		}
	}
	return 0o777, nil // unknown: then every mode is set explicitly
}
