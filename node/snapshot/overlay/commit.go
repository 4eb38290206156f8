package overlay

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
)

// syncDelay is how long the background sync waits for more layers to commit:
// one sync serves all layers of a pull.
const syncDelay = 2 * time.Second

// Commit turns an Active snapshot into a layer by changing its record: its
// folder is where a layer's folder belongs already.
func (s *Store) Commit(ctx context.Context, name, active snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	if err := ctx.Err(); err != nil {
		return snapshot.Committed{}, err
	}
	if err := name.Check(); err != nil {
		return snapshot.Committed{}, fmt.Errorf("commit snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.findLocked(active)
	switch {
	case err != nil:
		return snapshot.Committed{}, fmt.Errorf("commit snapshot: %w", err)
	case rec.Kind != snapshot.KindActive:
		return snapshot.Committed{}, errs.New(errs.Conflict, "commit snapshot: %s is %s, not active", active, rec.Kind)
	case s.byKey[name] != nil:
		return snapshot.Committed{}, errs.New(errs.Exists, "commit snapshot: %s exists", name)
	}
	layer := *rec
	layer.Key, layer.Kind, layer.Created = name, snapshot.KindCommitted, time.Now().UTC()
	layer.Labels = snapshot.MergeLabels(rec.Labels, labels)
	layer.Boot = s.boot
	delete(s.byKey, active)
	s.put(&layer)
	s.markUnsafe()
	return snapshot.Committed{Info: layer.info()}, nil
}

// Sync makes the layers committed so far safe from a loss of power.
func (s *Store) Sync(ctx context.Context) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	waiting := s.unsynced()
	if len(waiting) > 0 {
		if err := unix.Syncfs(s.dirfd); err != nil {
			return fmt.Errorf("sync layers: %w", full(err))
		}
	}
	s.mu.Lock()
	for _, key := range waiting {
		if rec := s.byKey[key]; rec != nil && rec.Boot != "" {
			safe := *rec
			safe.Boot = ""
			s.put(&safe)
		}
	}
	s.mu.Unlock()
	// Everything handed to Later before goes along with this.
	return s.db.Update(ctx, func(*kv.Tx) error { return nil })
}

func (s *Store) unsynced() []snapshot.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var keys []snapshot.Key
	for key, rec := range s.byKey {
		if rec.Boot != "" && !rec.claimed {
			keys = append(keys, key)
		}
	}
	return keys
}

func (s *Store) markUnsafe() {
	select {
	case s.unsafe <- struct{}{}:
	default: // the loop has yet to take the last token
	}
}

// syncLoop syncs some time after a layer was committed.
func (s *Store) syncLoop(ctx context.Context) {
	for {
		select {
		case <-s.unsafe:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(syncDelay):
		case <-ctx.Done():
			return
		}
		if err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "layers are not safe from a loss of power yet", "error", err)
		}
	}
}
