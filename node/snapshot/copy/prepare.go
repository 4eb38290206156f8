package copy

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Prepare makes a writable snapshot: a clone of the parent's tree.
func (s *Store) Prepare(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error) {
	rec, err := s.records.Claim(ctx, snapshot.KindActive, key, parent, labels)
	if err != nil {
		return snapshot.Active{}, fmt.Errorf("prepare snapshot: %w", err)
	}
	if err = unix.Mkdirat(s.dirfd, rec.ID, 0o700); err == nil {
		_, err = s.whole(ctx, rec)
	}
	if err != nil {
		s.records.Release(rec)
		s.sweeper.Add(rec.ID)
		return snapshot.Active{}, fmt.Errorf("prepare snapshot %s: %w", key, errs.Full(err))
	}
	rec.Boot = s.boot
	return snapshot.Active{Info: s.records.Settle(rec)}, nil
}

// View makes a snapshot for reading: a record, no more.
func (s *Store) View(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.View, error) {
	rec, err := s.records.Claim(ctx, snapshot.KindView, key, parent, labels)
	if err != nil {
		return snapshot.View{}, fmt.Errorf("view snapshot: %w", err)
	}
	return snapshot.View{Info: s.records.Settle(rec)}, nil
}

// Commit turns an Active snapshot into a layer by changing its record.
func (s *Store) Commit(ctx context.Context, name, active snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	return s.records.Commit(ctx, name, active, labels, s.boot)
}

// Remove forgets a snapshot; the sweeper deletes its folder.
func (s *Store) Remove(ctx context.Context, key snapshot.Key) error {
	rec, err := s.records.Remove(ctx, key)
	if err == nil && rec.Kind != snapshot.KindView {
		s.sweeper.Add(rec.ID)
	}
	return err
}

// sweep deletes folders.
func (s *Store) sweep(ctx context.Context) {
	s.records.Sweep(ctx, s.sweeper, func(waiting int, err error) {
		s.log.ErrorContext(ctx, "trees wait to be deleted", "trees", waiting, "error", err)
	}, func(name string) {
		if err := s.delete(ctx, name); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "tree is kept for the next start to delete", "tree", name, "error", err)
		}
	})
}

// syncDelay is how long the background sync waits for more to be made: one
// sync serves all.
const syncDelay = 2 * time.Second

// Sync makes all that is there safe from a loss of power.
func (s *Store) Sync(ctx context.Context) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	return s.records.Sync(ctx, func() error {
		if err := unix.Syncfs(s.dirfd); err != nil {
			return fmt.Errorf("sync trees: %w", errs.Full(err))
		}
		return nil
	})
}

func (s *Store) syncLoop(ctx context.Context) {
	for {
		select {
		case <-s.records.Unsafe():
		case <-ctx.Done():
			return
		}
		if !snapshot.Rest(ctx, syncDelay) {
			return
		}
		if err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "trees are not safe from a loss of power yet", "error", err)
		}
	}
}
