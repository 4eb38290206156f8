// Package blob keeps content under its digest, on disk:
//
//	<dir>/sha256/<hex>          whole and verified; never changed, only removed
//	<dir>/partial/<alg>-<hex>   a download in the making, or one to be resumed
//	<dir>/ingest/<random>       content whose digest is not yet known, or a blob that goes
//	<dir>/named/<name>          content that its writer will come back to: see Named
//
// What stands under sha256/ has been hashed, synced and renamed into place,
// so a crash or a full disk leaves either the whole blob or none. Partial
// downloads and named content survive the process, but not the machine: after
// a reboot they are dropped, since their bytes may not have reached the disk.
//
// Lock order: Store.mu before flight.mu.
package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "crypto/sha512" // so that sha512 digests, which OCI allows, can be verified
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth/base/errs"
)

const (
	partialDir = "partial"
	ingestDir  = "ingest"
	namedDir   = "named"
	bufferSize = 256 << 10
)

// Info says what is known of a whole blob.
type Info struct {
	Digest digest.Digest
	Size   int64
	// Disk is what it takes of the disk, in whole blocks.
	Disk int64
	// Stored is when it was put here.
	Stored time.Time
}

// Store holds blobs. It is safe for concurrent use; one process at a time
// may have dir open.
type Store struct {
	dir     string
	log     *slog.Logger
	buffers sync.Pool

	life context.Context //nolint:containedctx // downloads outlive the reader that began them, not the store
	end  context.CancelFunc
	wg   sync.WaitGroup // the flights

	mu      sync.Mutex
	flights map[digest.Digest]*flight
}

// Open makes dir ready and clears what a crash left behind. Downloads run
// until Close, whatever becomes of ctx. log may be nil.
func Open(ctx context.Context, dir string, log *slog.Logger) (*Store, error) {
	for _, d := range []string{string(digest.SHA256), string(digest.SHA512), partialDir, ingestDir, namedDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open blob store: %w", err)
		}
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{dir: dir, log: log, flights: map[digest.Digest]*flight{}}
	s.buffers.New = func() any { b := make([]byte, bufferSize); return &b }
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := empty(filepath.Join(dir, ingestDir)); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	if err := s.dropAfterReboot(ctx); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	return s, nil
}

// Close ends the downloads in flight; their partial files stay.
func (s *Store) Close() error {
	s.end()
	s.wg.Wait()
	return nil
}

// dropAfterReboot removes partial files that another boot wrote.
func (s *Store) dropAfterReboot(ctx context.Context) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	mark := filepath.Join(s.dir, "boot")
	if last, err := os.ReadFile(mark); err == nil && bytes.Equal(last, boot) {
		return nil
	}
	s.log.DebugContext(ctx, "new boot: partial downloads are dropped", "dir", s.dir)
	if err := errors.Join(empty(filepath.Join(s.dir, partialDir)), empty(filepath.Join(s.dir, namedDir))); err != nil {
		return err
	}
	return os.WriteFile(mark, boot, 0o600)
}

// Info returns what is known of a whole blob, or errs.NotFound.
func (s *Store) Info(d digest.Digest) (Info, error) {
	path, err := s.path(d)
	if err != nil {
		return Info{}, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return Info{}, s.missing(d, err)
	}
	return Info{Digest: d, Size: st.Size(), Disk: blocks(st), Stored: st.ModTime()}, nil
}

// Has says whether the whole blob is here.
func (s *Store) Has(d digest.Digest) bool {
	_, err := s.Info(d)
	return err == nil
}

// Reader opens a whole blob, or answers errs.NotFound. The caller closes it
// and must not write to it.
func (s *Store) Reader(_ context.Context, d digest.Digest) (*os.File, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, s.missing(d, err)
	}
	return f, nil
}

// Open opens a whole blob at offset, or answers errs.NotFound.
func (s *Store) Open(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	f, err := s.Reader(ctx, d)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("blob %s: %w", d, err), f.Close())
	}
	return f, nil
}

// Read returns a whole blob of at most limit bytes: manifests, configurations.
func (s *Store) Read(_ context.Context, d digest.Digest, limit int64) ([]byte, error) {
	info, err := s.Info(d)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, errs.New(errs.Invalid, "blob %s is %d bytes long, more than the %d that fit", d, info.Size, limit)
	}
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, s.missing(d, err)
	}
	return b, nil
}

// Walk calls fn for every whole blob, in no order. Blobs may come and go
// meanwhile.
func (s *Store) Walk(ctx context.Context, fn func(Info) error) error {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		entries, err := os.ReadDir(filepath.Join(s.dir, string(alg)))
		if err != nil {
			return fmt.Errorf("walk blobs: %w", err)
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			info, err := s.Info(digest.NewDigestFromEncoded(alg, e.Name()))
			if err != nil {
				continue // gone meanwhile, or not ours
			}
			if err := fn(info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete removes a blob; readers that have it open keep it. errs.NotFound
// if it is not here.
func (s *Store) Delete(_ context.Context, d digest.Digest) error {
	free, err := s.Take(d)
	if err != nil {
		return err
	}
	return free()
}

// Take removes a blob as Delete does, and leaves giving back its disk to free:
// it costs the same however big the blob is.
func (s *Store) Take(d digest.Digest) (free func() error, err error) {
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	away := s.temporary() // where the next Open finds it, should free not be called
	if err := os.Rename(path, away); err != nil {
		return nil, s.missing(d, err)
	}
	return func() error { return os.Remove(away) }, nil
}

// Sweep removes partial downloads that nobody has touched since before, and
// says how many bytes that gave back.
func (s *Store) Sweep(before time.Time) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := map[string]bool{}
	for d := range s.flights {
		busy[partialName(d)] = true
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, partialDir))
	if err != nil {
		return 0, fmt.Errorf("sweep partial blobs: %w", err)
	}
	var freed int64
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || busy[e.Name()] || !st.ModTime().Before(before) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, partialDir, e.Name())); err != nil {
			return freed, fmt.Errorf("sweep partial blobs: %w", err)
		}
		freed += st.Size()
	}
	return freed, nil
}

// Loose is what the disk holds besides whole blobs: downloads under way, or
// broken off.
func (s *Store) Loose() (int64, error) {
	var size int64
	for _, dir := range []string{partialDir, ingestDir, namedDir} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return size, fmt.Errorf("count partial blobs: %w", err)
		}
		for _, e := range entries {
			if st, err := e.Info(); err == nil {
				size += blocks(st)
			}
		}
	}
	return size, nil
}

func blocks(st os.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

// path is where the whole blob stands; it also guards against digests that
// would lead elsewhere.
func (s *Store) path(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", errs.New(errs.Invalid, "digest %.80q: %w", d, err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return "", errs.New(errs.Unsupported, "digest %s: only sha256 and sha512 are supported", d)
	}
	return filepath.Join(s.dir, d.Algorithm().String(), d.Encoded()), nil
}

func (s *Store) missing(d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "blob %s is not here", d)
	}
	return fmt.Errorf("blob %s: %w", d, err)
}

func (s *Store) temporary() string { return filepath.Join(s.dir, ingestDir, rand.Text()) }

func partialName(d digest.Digest) string { return strings.ReplaceAll(d.String(), ":", "-") }

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// writeError gives a failed write its kind.
func writeError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errs.New(errs.Exhausted, "no space left for blobs: free some (berth system prune) or move the root folder: %w", err)
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return errs.New(errs.Unavailable, "the blob folder cannot be written: %w", err)
	}
	return err
}
