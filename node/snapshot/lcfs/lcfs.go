// Package lcfs is the snapshot driver on the layer store: bodies of files as
// objects that all layers share, trees as EROFS images, overlayfs to put them
// together.
//
// On disk, below Config.Dir:
//
//	objects/, pending/      bodies under their sha256: image/object
//	meta/<sha256>.erofs     the tree of a layer (delta) or of a whole chain (merged); .erofs.zst: at rest; .objs: the
//	                        objects it names
//	recipes/<id>            what is needed to write a pulled layer's tar again
//	layers/<id>/{fs,work}   writable folders of Active snapshots; of a layer, until it is settled
//	layers/empty            the lowest lower of a mount that needs one
//	mnt/<name>              EROFS images mounted for other processes
//
// A committed layer is one of:
//
//	unsettled  its folder is what an Active snapshot left; Commit wrote a record, no more
//	durable    … and would survive a loss of power: the record names no boot
//	settled    its tree is a delta image, its bodies are objects. The folder goes
//	           when nothing that is mounted may stand on it
//
// Ingested layers are settled from the start. Work in the background settles
// layers from the bottom up, and merges chains into one image, so that a mount
// costs the same however deep its chain is.
//
// An id is never used again, so that a folder needs no renaming: it is made in
// its final place, belongs to a snapshot once a record names it, and is
// deleted after no record does. The same holds of images and recipes. What a
// crash leaves that no record names, Open has swept.
//
// Records lie in bucket "lcfs" under their id. They are written with
// kv.DB.Later: the next durable record of anybody takes them along. While
// files that a record names may not be on disk yet, it carries the id of the
// machine's boot; after another boot it is dropped, or loses those names.
//
// Deleted files are whiteouts (character device 0:0), folders that hide what
// is below have trusted.overlay.opaque=y. overlayfs ignores that on the root
// of a layer, so the record keeps it and the stack ends there.
//
// Lock order: Store.mu is the only lock held while calling kv, and nothing
// slow happens under it. Store.trees and Store.images have locks of their own
// that nothing else is taken under.
package lcfs

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
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/object"
	"berth/node/folder"
	"berth/node/snapshot"
)

const (
	bucket      = "lcfs"
	stateBucket = "lcfs-state"
	emptyFolder = "empty"
)

// Config says where a Store lives and how it mounts.
type Config struct {
	Dir string
	DB  *kv.DB
	Log *slog.Logger
	// MaxLayer bounds the bytes that one layer may unpack to; 256 GiB when 0.
	MaxLayer int64
	// Features of this machine as Probe found them; Remembered when nil.
	Features *Features
	// Loop mounts images on loop devices.
	Loop bool
	// Metacopy mounts as kernels before 6.16 want it: a file whose looks change
	// is copied without its body.
	Metacopy bool
	// Quiet is how long after a commit the work in the background begins; 2 s
	// when 0.
	Quiet time.Duration
	// Rest is how long an image is kept as it is mounted after nothing was
	// mounted on it any more; 30 s when 0.
	Rest time.Duration
}

// Store keeps snapshots as objects and images.
type Store struct {
	dir      string
	layers   string // dir/layers
	dirfd    int    // of layers
	metafd   int    // of meta
	disks    []int  // folders on file systems that the objects are not on
	objects  *object.Store
	db       *kv.DB
	log      *slog.Logger
	boot     string
	umask    uint32
	maxLayer int64
	metacopy bool
	partial  bool // uppers may lack what is in the layers below: metacopy is, or was, on
	fds      bool // overlayfs takes descriptors of detached mounts
	shifts   bool // … that shift owners
	quiet    time.Duration
	missing  func(context.Context) (int, error) // opens what brings missing bodies; nil where there is nobody
	lacking  atomic.Bool                        // there may be layers that lack bodies
	same     bool                               // no reboot since the store was last open: mounts may have stayed

	stop      context.CancelFunc
	life      context.Context //nolint:containedctx // what works in the background ends with it
	work      sync.WaitGroup
	sweeper   queue[leftover]
	closer    queue[int]    // descriptors whose closing takes time
	sealer    queue[toSeal] // images that are durable now
	restless  chan struct{} // holds a token while there may be images to put to rest
	restAfter time.Duration
	unsafe    chan struct{} // holds a token while some record is not yet synced
	tidy      chan struct{} // holds a token while there may be something to settle, merge or sweep
	syncing   sync.Mutex    // one Sync at a time
	merging   sync.Mutex    // one chain is merged at a time
	setting   sync.Mutex    // one layer is settled at a time
	placing   sync.Mutex    // one image is put into meta/, or deleted, at a time
	ingests   atomic.Int64  // that are neither committed nor dropped
	opened    time.Time
	busySince atomic.Int64 // when a layer was last committed, in nanoseconds since opened
	users     snapshot.UserNamespaces
	images    images
	shown     shownImages
	trees     treeCache

	mu       sync.RWMutex
	byKey    map[snapshot.Key]*record
	children map[snapshot.Key]int // by parent, whether or not the parent exists
	next     uint64
	uses     uses
	making   map[string]int      // images that are written and that no record names yet
	gone     map[string]bool     // images that a record named, or that were made; true: its objects may be nobody's
	sound    map[string]struct{} // images that are on disk whole
	lost     strays
	heldBack map[string]struct{} // folders and images that would be gone but for a use
	standing []leftover          // mounts stand on them
}

// Open opens the store in c.Dir and makes it if need be. It returns before
// leftovers of a crash are deleted.
func Open(ctx context.Context, c Config) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open snapshots: %w", errs.Full(err))
		}
	}()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	umask, err := readUmask()
	if err != nil {
		return nil, err
	}
	features := c.Features
	if features == nil {
		probed, err := Remembered(ctx, c.DB, c.Dir)
		if err != nil {
			return nil, err
		}
		features = &probed
	}
	if !features.Usable(c.Loop) {
		return nil, errs.New(errs.Unsupported, "%s", features.Why())
	}
	s := &Store{
		dir: c.Dir, layers: filepath.Join(c.Dir, "layers"), dirfd: -1, metafd: -1,
		opened: time.Now(), db: c.DB, log: c.Log, umask: umask, boot: strings.TrimSpace(string(boot)),
		maxLayer: cmp.Or(c.MaxLayer, 256<<30), quiet: cmp.Or(c.Quiet, 2*time.Second),
		metacopy: c.Metacopy || !features.PlainData, fds: features.Descriptors, shifts: features.Shift,
		unsafe: make(chan struct{}, 1), tidy: make(chan struct{}, 1), restless: make(chan struct{}, 1),
		restAfter: cmp.Or(c.Rest, 30*time.Second),
		byKey:     map[snapshot.Key]*record{}, children: map[snapshot.Key]int{},
		making: map[string]int{}, gone: map[string]bool{}, heldBack: map[string]struct{}{}, sound: map[string]struct{}{},
	}
	s.busySince.Store(-int64(s.quiet)) // nothing to wait for
	s.images.init(filepath.Join(c.Dir, "meta"), c.Loop)
	s.shown.init(filepath.Join(c.Dir, "mnt"))
	s.uses.init()
	if err := s.openFolders(); err != nil {
		s.closeFolders()
		return nil, err
	}
	leftovers, err := s.load()
	if err == nil {
		err = s.enter(ctx)
	}
	if err == nil {
		s.objects, err = object.Open(ctx, object.Config{Dir: c.Dir, Log: c.Log})
	}
	if err != nil {
		s.closeFolders()
		return nil, err
	}
	if err := s.openDisks(); err != nil {
		s.closeFolders()
		return nil, errors.Join(err, s.objects.Close())
	}
	s.countLacking()
	s.remakeUppers()
	s.start(ctx, leftovers)
	return s, nil
}

func (s *Store) openFolders() error {
	for _, name := range []string{"layers/" + emptyFolder, "meta", "recipes", "mnt"} {
		if err := os.MkdirAll(filepath.Join(s.dir, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"layers", "meta", "recipes", "mnt"} { // set-user-id files of images lie here
		if err := os.Chmod(filepath.Join(s.dir, name), 0o700); err != nil {
			return err
		}
	}
	var err error
	if s.dirfd, err = openFolder(s.layers); err != nil {
		return err
	}
	s.metafd, err = openFolder(filepath.Join(s.dir, "meta"))
	return err
}

func openFolder(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func (s *Store) closeFolders() {
	for _, fd := range append(s.disks, s.dirfd, s.metafd) {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// start begins the work in the background.
func (s *Store) start(ctx context.Context, leftovers []leftover) {
	s.life, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.sweeper.init()
	s.closer.init()
	s.sealer.init()
	s.work.Go(func() { s.sweepFolders(s.life) })
	s.work.Go(func() { s.closeDescriptors(s.life) })
	s.work.Go(func() { s.sealLoop(s.life) })
	s.work.Go(func() { s.syncLoop(s.life) })
	s.work.Go(func() { s.tidyLoop(s.life) })
	s.work.Go(func() { s.restLoop(s.life) })
	s.sweeper.add(leftovers...)
	s.nudge(s.tidy)
	s.nudge(s.restless)
}

// Close stops the background work. What is still to be done is found again by
// the next Open.
func (s *Store) Close() error {
	s.stop()
	s.work.Wait()
	s.mu.Lock()
	if s.lost.empty() && s.ingests.Load() == 0 { // else the next Open is to look for strays
		s.db.Later(func(tx *kv.Tx) error { return tx.Delete(stateBucket, "open") })
	}
	s.mu.Unlock()
	s.users.Close()
	s.images.close()
	err := errors.Join(s.objects.Close(), s.shown.close())
	s.closeFolders()
	return err
}

// nudge wakes a loop that may be waiting.
func (s *Store) nudge(loop chan struct{}) {
	select {
	case loop <- struct{}{}:
	default: // it has yet to take the last token
	}
}

// fs is the folder of the record's own files.
func (s *Store) fs(id string) string { return s.layers + "/" + id + "/fs" }

// isAside says whether a folder in layers/ is part of a deletion.
func isAside(name string) bool { return folder.IsAside(name) }
