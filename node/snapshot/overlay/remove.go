package overlay

import (
	"context"
	"fmt"
	"sync"
	"time"

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
			if !rest(ctx) {
				return
			}
			continue
		}
		for _, id := range ids {
			if err := folder.Remove(ctx, s.dirfd, id); err != nil && ctx.Err() == nil {
				s.log.ErrorContext(ctx, "layer is kept for the next start to delete", "layer", id, "error", err)
			}
		}
	}
}

// sweepPause is how long sweep waits when records cannot be written: the disk
// may be full, and somebody may make room.
const sweepPause = time.Second

// rest waits a little; it returns false when ctx is done.
func rest(ctx context.Context) bool {
	timer := time.NewTimer(sweepPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
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
