package overlay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/folder"
	"berth/node/snapshot"
)

// Remove forgets a snapshot; the sweeper deletes its folder.
func (s *Store) Remove(ctx context.Context, key snapshot.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	rec, err := s.findLocked(key)
	if err == nil && s.children[key] > 0 {
		err = errs.New(errs.Conflict, "snapshot %s has %d children", key, s.children[key])
	}
	if err != nil {
		s.mu.Unlock()
		return fmt.Errorf("remove snapshot: %w", err)
	}
	delete(s.byKey, key)
	s.unpin(rec.Parent)
	s.forget(rec.ID)
	s.mu.Unlock()
	if rec.Kind != snapshot.KindView {
		s.sweeper.add(rec.ID)
	}
	return nil
}

// sweep deletes folders. It first waits until the records that named them are
// gone from disk: else a crash would leave a snapshot with half a tree.
func (s *Store) sweep(ctx context.Context) {
	for {
		ids := s.sweeper.take(ctx)
		if ids == nil {
			return
		}
		if err := s.db.Update(ctx, func(*kv.Tx) error { return nil }); err != nil {
			if ctx.Err() == nil {
				s.log.ErrorContext(ctx, "layers wait to be deleted", "layers", len(ids), "error", err)
			}
			s.sweeper.add(ids...)
			if !rest(ctx, sweepPause) {
				return
			}
			continue
		}
		s.deleteAll(ctx, ids)
	}
}

// sweepLeftovers deletes what a crash left. What an ingest that did not end
// had in common with layers that went before it is on nobody's list.
func (s *Store) sweepLeftovers(ctx context.Context, ids []string) {
	unfinished := slices.ContainsFunc(ids, func(id string) bool {
		_, listed := readList(s.dirfd, id)
		return !listed && !s.has(id+"/work") // nor was it Active
	})
	s.deleteAll(ctx, ids)
	if !unfinished {
		return
	}
	if err := s.variants.sift(ctx); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "files that no layer has are left until the next start", "error", err)
	}
}

func (s *Store) deleteAll(ctx context.Context, ids []string) {
	for _, id := range ids {
		if err := s.delete(ctx, id); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "layer is kept for the next start to delete", "layer", id, "error", err)
		}
	}
}

// sweepPause is how long sweep waits when records cannot be written: the disk
// may be full, and somebody may make room.
const sweepPause = time.Second

// rest waits; it returns false when ctx is done.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// delete deletes the folder of a layer, and the files that only it had. Its
// list of them goes last, so that a crash forgets none.
func (s *Store) delete(ctx context.Context, id string) error {
	if keys, listed := readList(s.dirfd, id); listed {
		if err := s.deleteFiles(ctx, id); err != nil {
			return err
		}
		if err := s.variants.drop(ctx, keys); err != nil {
			return err
		}
	}
	return folder.Remove(ctx, s.dirfd, id)
}

func (s *Store) deleteFiles(ctx context.Context, id string) error {
	fd, err := unix.Openat(s.dirfd, id, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return folder.Remove(ctx, fd, "fs")
}

// queue hands values to one background worker; add never waits.
type queue[T any] struct {
	mu     sync.Mutex
	values []T
	wake   chan struct{}
}

func (q *queue[T]) init() { q.wake = make(chan struct{}, 1) }

func (q *queue[T]) add(values ...T) {
	q.mu.Lock()
	q.values = append(q.values, values...)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for values and returns all that there are, or nil when ctx is
// done.
func (q *queue[T]) take(ctx context.Context) []T {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		}
		if values := q.takeAll(); len(values) > 0 {
			return values
		}
	}
}

func (q *queue[T]) takeAll() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	values := q.values
	q.values = nil
	return values
}
