package object

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

const (
	// margin is how much older than the epoch a body may seem that is in it.
	margin = 2 * time.Minute
	// stale is the age from which it pays to make an epoch younger.
	stale = time.Minute
)

// epoch is the time since which bodies may not be on disk whole. Its file
// holds the boot's id and the time, by the clock that files get their times
// from, which may be set back.
type epoch struct {
	first   atomic.Int64 // since, in Unix nanoseconds
	mu      sync.Mutex
	file    string
	boot    string
	since   time.Time // zero: everything is durable
	batches int       // open ones
	begun   uint64    // batches ever
	soiled  bool      // a damaged body could not be deleted
}

// open reads the epoch that the last process left, if it left one.
func (e *epoch) open(file string) (since time.Time, found bool, err error) {
	e.file = file
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return since, false, err
	}
	e.boot = strings.TrimSpace(string(boot))
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return since, false, nil
	}
	if err != nil {
		return since, false, err
	}
	e.since = time.Unix(1, 0) // of a damaged file: all bodies
	if _, at, ok := strings.Cut(strings.TrimSpace(string(text)), " "); ok {
		if n, err := strconv.ParseInt(at, 10, 64); err == nil {
			e.since = time.Unix(0, n)
		}
	}
	e.first.Store(e.since.UnixNano())
	return e.since, true, nil
}

// enter begins a batch.
func (e *epoch) enter() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := wallClock()
	if e.since.IsZero() || now.Before(e.since) {
		if err := e.write(now); err != nil {
			return err
		}
	}
	e.batches++
	e.begun++
	return nil
}

// look sees to it that a body that is written now is in the epoch.
func (e *epoch) look() error {
	if time.Now().UnixNano() >= e.first.Load() {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := wallClock(); now.Before(e.since) {
		return e.write(now)
	}
	return nil
}

// wallClock is the time without the reading of a clock that is never set.
func wallClock() time.Time { return time.Now().Round(0) }

func (e *epoch) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.batches--
}

// soil keeps the epoch for the next process, so that it reads all again.
func (e *epoch) soil() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.soiled = true
}

// write makes the epoch begin at since, durably. A file that a crash leaves
// half written stands for all time.
func (e *epoch) write(since time.Time) error {
	err := e.put(since)
	if err == nil {
		err = syncDir(filepath.Dir(e.file))
	}
	if err == nil {
		e.since = since
		e.first.Store(since.UnixNano())
	}
	return err
}

// put writes the file over what is in it, which needs no room. Where there is
// no room for a new one none is left, for an empty one would have the next
// process read everything.
func (e *epoch) put(since time.Time) error {
	f, err := os.OpenFile(e.file, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := fmt.Fprintf(f, "%s %d\n", e.boot, since.UnixNano())
	if err == nil {
		err = f.Truncate(int64(n))
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil && e.since.IsZero() {
		err = errors.Join(err, os.Remove(e.file))
	}
	return err
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Sync makes all bodies durable that batches which have ended stored.
func (s *Store) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e := &s.epoch
	e.mu.Lock()
	start, idle, begun := wallClock(), e.batches == 0, e.begun
	e.mu.Unlock()
	if err := unix.Syncfs(s.fd); err != nil {
		e.soil() // what could not be written the kernel has forgotten: a later sync says nothing of it
		return fmt.Errorf("sync objects: %w", errs.Full(err))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.since.IsZero() || e.soiled:
	case idle && e.begun == begun:
		// Should the file come back after a loss of power, bodies are read once
		// more than needed.
		if err := os.Remove(e.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("end epoch of objects: %w", err)
		}
		e.since = time.Time{}
	case start.Sub(e.since) > stale, start.Before(e.since):
		if err := e.write(start); err != nil {
			return fmt.Errorf("begin epoch of objects: %w", errs.Full(err))
		}
	}
	return nil
}

// recover reads all bodies that are not older than an epoch which a crash
// left, and deletes those that are damaged. One that cannot be read now may be
// whole: it stays, but nobody takes it for known, and the next process reads
// it again.
func (s *Store) recover(ctx context.Context, since time.Time) {
	read, damaged, err := s.recheck(ctx, since.Add(-margin))
	if err == nil {
		err = s.Sync(ctx)
	}
	if ctx.Err() != nil {
		return // closed: the next process begins anew
	}
	if err != nil {
		s.log.ErrorContext(ctx, "objects written before the last stop were not all checked", "error", err)
		s.epoch.soil()
	}
	s.log.InfoContext(ctx, "objects written before the last stop are checked", "read", read, "damaged", damaged)
	close(s.recovered)
}

func (s *Store) recheck(ctx context.Context, since time.Time) (read, damaged int, err error) {
	err = s.walk(ctx, func(d tree.Digest, st *unix.Stat_t) error {
		if time.Unix(st.Ctim.Unix()).Before(since) {
			return nil
		}
		read++
		sh := s.shard(d)
		err := s.check(sh.dir, d)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		sh.mu.Lock()
		sh.known.remove(keyOf(d)) // so the next Put reads it again
		sh.mu.Unlock()
		if !errors.Is(err, errs.Invalid) {
			s.epoch.soil()
			s.log.ErrorContext(ctx, "object cannot be checked", "object", Name(d), "error", err)
			return nil
		}
		damaged++
		if err := unix.Unlinkat(sh.dir, name(d), 0); err != nil {
			s.epoch.soil()
			s.log.ErrorContext(ctx, "damaged object cannot be deleted", "object", Name(d), "error", err)
		}
		return nil
	})
	return read, damaged, err
}
