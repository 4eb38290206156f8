// Package object keeps the bodies of regular files, each once, under its
// sha256. All images, layers and containers of a node share them, and so the
// kernel's page cache.
//
// On disk, below the folder given to Open:
//
//	objects/ab/cdef…   a body; ab and cdef… are its sha256 in hex. 0600 root, folders 0700
//	objects/tmp-…      a body on its way, of no use to the next process
//	pending/epoch      bodies younger than it may be damaged
//
// A body is written when its digest is known, by one create under its final
// name, one write, one close: no rename, no fsync. Those too big to wait in
// memory are renamed into place. So a crash or a loss of power may leave damaged bodies, and the epoch
// bounds which: it is made durable before the first body of a series is
// written, and taken away when all of them are. Open finds it, and every body
// younger than it is read again, before the next batch begins.
//
// Who writes bodies does so in a Batch. What a batch stored or found is not
// swept before the batch ends; by then something that the sweeper asks must
// name it. A sweep that runs meanwhile leaves it alone even after that.
//
// The names of the bodies are kept in memory, 12 bytes and some room each, by
// the folder of their first byte, read from disk when one of that folder is first asked
// for. One process at a time may have a store open.
//
// Errors for lack of room are errs.Exhausted; nothing broken stays behind them.
package object

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// Block is the size up to which a body is best handed over whole, by Put.
const Block = 1 << 20

// Config says where a store is.
type Config struct {
	Dir string // made if need be; objects/ and pending/ are below
	Log *slog.Logger
}

// Store is the bodies of one node.
type Store struct {
	dir    string // of the objects
	fd     int
	log    *slog.Logger
	shards [256]shard
	blocks sync.Pool // of *[]byte, Block long

	epoch     epoch
	recovered chan struct{} // closed when the bodies of an earlier epoch were read again
	stop      context.CancelFunc
	tasks     sync.WaitGroup
	temporary atomic.Uint64
	held      atomic.Int64 // bytes in memory of bodies on their way
	noClone   atomic.Bool  // the file system cannot share bytes between files
	noVerity  atomic.Bool
	watched   atomic.Bool
	sweeps    sweeps
}

// Open opens the store in cfg.Dir.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{dir: filepath.Join(cfg.Dir, "objects"), log: cfg.Log, recovered: make(chan struct{})}
	s.blocks.New = func() any { b := make([]byte, Block); return &b }
	for i := range s.shards {
		s.shards[i].init(i)
	}
	for _, dir := range []string{s.dir, filepath.Join(cfg.Dir, "pending")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open object store: %w", errs.Full(err))
		}
	}
	fd, err := unix.Open(s.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open object store: %w", err)
	}
	s.fd = fd
	if err := s.begin(ctx, filepath.Join(cfg.Dir, "pending", "epoch")); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open object store: %w", errs.Full(err))
	}
	return s, nil
}

// begin clears what the last process left, or has it looked through.
func (s *Store) begin(ctx context.Context, epochFile string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "tmp-") {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil {
			return err
		}
	}
	since, open, err := s.epoch.open(epochFile)
	if err != nil {
		return err
	}
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if !open {
		close(s.recovered)
		return nil
	}
	s.tasks.Go(func() { s.recover(ctx, since) })
	return nil
}

// Close ends what runs in the background. Batches must have ended.
func (s *Store) Close() error {
	s.stop()
	s.tasks.Wait()
	err := unix.Close(s.fd)
	for i := range s.shards {
		err = errors.Join(err, s.shards[i].close())
	}
	return err
}

// Dir is the folder of the objects: the data-only layer of an overlay.
func (s *Store) Dir() string { return s.dir }

// Name is where the body d lies below Dir.
func Name(d tree.Digest) string {
	var b [65]byte
	hex.Encode(b[:2], d[:1])
	b[2] = '/'
	hex.Encode(b[3:], d[1:])
	return string(b[:])
}

// name is the file of d in the folder of its shard.
func name(d tree.Digest) string { return hex.EncodeToString(d[1:]) }

// Open opens the body d to be read. Its error is errs.NotFound where the body
// is not here.
func (s *Store) Open(d tree.Digest) (*os.File, error) {
	f, err := os.Open(filepath.Join(s.dir, Name(d)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "body %x is not here", d)
	}
	return f, err
}

// Has says whether the body d is here.
func (s *Store) Has(d tree.Digest) bool {
	sh := s.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.load(s) == nil && sh.known.has(keyOf(d))
}

// Walk calls fn with each body that is here, and its size.
func (s *Store) Walk(ctx context.Context, fn func(d tree.Digest, size int64) error) error {
	return s.walk(ctx, func(d tree.Digest, st *unix.Stat_t) error { return fn(d, st.Size) })
}

func (s *Store) walk(ctx context.Context, fn func(d tree.Digest, st *unix.Stat_t) error) error {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		err := sh.load(s)
		dir := sh.dir
		sh.mu.Unlock()
		if err != nil {
			return err
		}
		if dir < 0 {
			continue
		}
		found, err := list(dir, byte(i))
		if err != nil {
			return fmt.Errorf("list objects: %w", err)
		}
		for _, d := range found {
			if err := ctx.Err(); err != nil {
				return err
			}
			var st unix.Stat_t
			err := unix.Fstatat(dir, name(d), &st, unix.AT_SYMLINK_NOFOLLOW)
			if err == unix.ENOENT {
				continue // swept meanwhile
			}
			if err != nil {
				return fmt.Errorf("look at object %x: %w", d, err)
			}
			if err := fn(d, &st); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) shard(d tree.Digest) *shard { return &s.shards[d[0]] }
