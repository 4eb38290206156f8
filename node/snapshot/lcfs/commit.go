package lcfs

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
)

// maxUnsettled bounds the folders that a mount of a chain stands on.
const maxUnsettled = 64

// Commit turns an Active snapshot into a layer by changing its record: its
// folder is where a layer's folder belongs already.
func (s *Store) Commit(ctx context.Context, name, active snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	if err := ctx.Err(); err != nil {
		return snapshot.Committed{}, err
	}
	if err := name.Check(); err != nil {
		return snapshot.Committed{}, fmt.Errorf("commit snapshot: %w", err)
	}
	for {
		info, parent, err := s.commit(name, active, labels)
		if err != nil {
			return snapshot.Committed{}, fmt.Errorf("commit snapshot: %w", err)
		}
		if parent == "" {
			s.nudge(s.unsafe)
			s.changed()
			return snapshot.Committed{Info: info}, nil
		}
		if err := s.settleChain(ctx, parent); err != nil {
			return snapshot.Committed{}, fmt.Errorf("commit snapshot %s: make room in its chain: %w", active, err)
		}
	}
}

// commit changes the record, or returns the parent if too many layers of its
// chain are unsettled.
func (s *Store) commit(name, active snapshot.Key, labels map[string]string) (info snapshot.Info, full snapshot.Key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.findLocked(active)
	switch {
	case err != nil:
		return info, "", err
	case rec.Kind != snapshot.KindActive:
		return info, "", errs.New(errs.Conflict, "%s is %s, not active", active, rec.Kind)
	case s.byKey[name] != nil:
		return info, "", errs.New(errs.Exists, "%s exists", name)
	case s.unsettledLocked(rec.Parent) >= maxUnsettled:
		return info, rec.Parent, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(s.dirfd, rec.ID+"/fs", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return info, "", fmt.Errorf("look at layer %s: %w", rec.ID, err)
	}
	layer := *rec
	layer.Key, layer.Kind, layer.Created = name, snapshot.KindCommitted, time.Now().UTC()
	layer.Labels = snapshot.MergeLabels(rec.Labels, labels)
	layer.Looks = looks{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	layer.Boot, layer.Shown = s.boot, nil
	delete(s.byKey, active)
	s.put(&layer)
	s.uses.passOn(byKey(active), byUpper(rec.ID))
	return layer.info(), "", nil
}

// unsettledLocked counts the layers from key down that are folders. mu is
// held.
func (s *Store) unsettledLocked(key snapshot.Key) int {
	n := 0
	for rec := s.byKey[key]; rec != nil; rec = s.byKey[rec.Parent] {
		if !rec.isSettled() {
			n++
		}
	}
	return n
}

// Sync makes the layers committed so far safe from a loss of power.
func (s *Store) Sync(ctx context.Context) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	waiting := s.unsynced()
	if len(waiting) > 0 {
		if err := s.objects.Sync(ctx); err != nil {
			return fmt.Errorf("sync layers: %w", errs.Full(err))
		}
		for _, disk := range s.disks {
			if err := unix.Syncfs(disk); err != nil {
				return fmt.Errorf("sync layers: %w", errs.Full(err))
			}
		}
	}
	for _, was := range waiting {
		s.change(was, func(rec *record) {
			rec.Boot = ""
			if rec.Delta == was.Delta && rec.Merged == was.Merged {
				rec.Fresh = ""
			}
		})
		s.sealLater(was)
		s.nudge(s.restless)
	}
	// Everything handed to Later before goes along with this.
	return s.db.Update(ctx, func(*kv.Tx) error { return nil })
}

func (s *Store) unsynced() []*record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var recs []*record
	for _, rec := range s.byKey {
		if !rec.claimed && (rec.Boot != "" || rec.Fresh != "") {
			recs = append(recs, rec)
		}
	}
	return recs
}

// syncAgain is how long the background waits after a sync that failed.
const syncAgain = 10 * time.Second

// syncLoop syncs some time after a layer was committed: one sync serves all
// layers of a pull.
func (s *Store) syncLoop(ctx context.Context) {
	for {
		select {
		case <-s.unsafe:
		case <-ctx.Done():
			return
		}
		if !snapshot.Rest(ctx, s.quiet) {
			return
		}
		if err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "layers are not safe from a loss of power yet", "error", err)
			if !snapshot.Rest(ctx, syncAgain) {
				return
			}
			s.nudge(s.unsafe)
		}
		s.nudge(s.tidy)
	}
}
