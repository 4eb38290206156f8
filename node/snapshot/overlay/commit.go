package overlay

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// syncDelay is how long the background sync waits for more layers to commit:
// one sync serves all layers of a pull.
const syncDelay = 2 * time.Second

// Commit turns an Active snapshot into a layer by changing its record: its
// folder is where a layer's folder belongs already.
func (s *Store) Commit(ctx context.Context, name, active snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	return s.records.Commit(ctx, name, active, labels, s.boot)
}

// Sync makes the layers committed so far safe from a loss of power.
func (s *Store) Sync(ctx context.Context) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	return s.records.Sync(ctx, func() error {
		if err := unix.Syncfs(s.dirfd); err != nil {
			return fmt.Errorf("sync layers: %w", errs.Full(err))
		}
		return nil
	})
}

// syncLoop syncs some time after a layer was committed.
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
			s.log.ErrorContext(ctx, "layers are not safe from a loss of power yet", "error", err)
		}
	}
}
