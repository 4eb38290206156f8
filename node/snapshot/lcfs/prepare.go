package lcfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Prepare makes a writable snapshot: three folders and a record.
func (s *Store) Prepare(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error) {
	rec, err := s.claim(ctx, snapshot.KindActive, key, parent, labels)
	if err != nil {
		return snapshot.Active{}, fmt.Errorf("prepare snapshot: %w", err)
	}
	rec.Upper = true
	if err := s.makeUpper(rec); err != nil {
		s.release(rec)
		s.sweeper.add(leftover{id: rec.ID})
		return snapshot.Active{}, fmt.Errorf("prepare snapshot %s: %w", key, errs.Full(err))
	}
	return snapshot.Active{Info: s.show(rec)}, nil
}

// View makes a snapshot for reading: a record, no more.
func (s *Store) View(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.View, error) {
	rec, err := s.claim(ctx, snapshot.KindView, key, parent, labels)
	if err != nil {
		return snapshot.View{}, fmt.Errorf("view snapshot: %w", err)
	}
	return snapshot.View{Info: s.show(rec)}, nil
}

// claim takes key, so that nobody else does while its folders are made, and
// pins parent.
func (s *Store) claim(ctx context.Context, kind snapshot.Kind, key, parent snapshot.Key, labels map[string]string) (*record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := key.Check(); err != nil {
		return nil, err
	}
	if _, _, err := snapshot.IDMaps(labels); err != nil {
		return nil, err
	}
	id := s.newID()
	s.mu.Lock()
	defer s.mu.Unlock()
	below, err := s.standOn(key, parent)
	if err != nil {
		return nil, err
	}
	rec := &record{
		Info: snapshot.Info{
			Key: key, Parent: parent, Kind: kind, Created: time.Now().UTC(),
			Labels: snapshot.MergeLabels(nil, labels),
		},
		ID: id, Depth: below.Depth + 1, Looks: below.Looks, claimed: true,
	}
	s.byKey[key] = rec
	s.children[parent]++
	own := *rec // to be completed; what others meet stays as it is
	return &own, nil
}

// standOn checks that key is free and parent can carry it, and returns the
// parent's record. mu is held.
func (s *Store) standOn(key, parent snapshot.Key) (*record, error) {
	if s.byKey[key] != nil {
		return nil, errs.New(errs.Exists, "snapshot %s exists", key)
	}
	if parent == "" {
		return &record{Looks: plainLooks}, nil
	}
	below, err := s.findLocked(parent)
	if err != nil {
		return nil, errs.New(errs.NotFound, "no parent snapshot %.140q", string(parent))
	}
	if below.Kind != snapshot.KindCommitted {
		return nil, errs.New(errs.Conflict, "snapshot %s is %s: only a committed one can be a parent", parent, below.Kind)
	}
	if below.Depth >= snapshot.MaxDepth {
		return nil, errs.New(errs.Exhausted, "snapshot %s has %d layers below already", parent, below.Depth)
	}
	return below, nil
}

// release gives up what claim took.
func (s *Store) release(rec *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, rec.Key)
	s.unpin(rec.Parent)
}

// show shows a claimed record to everybody.
func (s *Store) show(claimed *record) snapshot.Info {
	rec := *claimed
	rec.claimed = false
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec.Labels[snapshot.Missing] != "" {
		s.lacking.Store(true)
		s.objects.Watched(true)
	}
	s.put(&rec)
	return rec.info()
}

// unpin counts a child of parent less. mu is held.
func (s *Store) unpin(parent snapshot.Key) {
	if s.children[parent]--; s.children[parent] == 0 {
		delete(s.children, parent)
	}
}

// makeUpper makes the folders of an Active snapshot. The root of the tree is
// the upper folder, so it takes mode and owner from the tree below.
func (s *Store) makeUpper(rec *record) error {
	for _, name := range []string{rec.ID, rec.ID + "/work"} {
		if err := unix.Mkdirat(s.dirfd, name, 0o700); err != nil {
			return &os.PathError{Op: "mkdir", Path: filepath.Join(s.layers, name), Err: err}
		}
	}
	return s.makeRoot(rec)
}

// makeRoot makes the folder that becomes the root of the tree.
func (s *Store) makeRoot(rec *record) error {
	fs, look := rec.ID+"/fs", rec.Looks
	if err := unix.Mkdirat(s.dirfd, fs, look.Mode); err != nil {
		return &os.PathError{Op: "mkdir", Path: s.fs(rec.ID), Err: err}
	}
	if look.UID|look.GID != 0 {
		if err := unix.Fchownat(s.dirfd, fs, int(look.UID), int(look.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chown", Path: s.fs(rec.ID), Err: err}
		}
	}
	if look.Mode&(s.umask|0o7000) != 0 {
		if err := unix.Fchmodat(s.dirfd, fs, look.Mode, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: s.fs(rec.ID), Err: err}
		}
	}
	return nil
}

// remakeUppers makes the folders again that Active snapshots have lost. A
// record may reach the disk before the folders that were made for it, because
// a loss of power takes back what was not synced; what was written in them is
// gone with them. What is there stays.
func (s *Store) remakeUppers() {
	for _, rec := range s.byKey {
		if rec.Kind != snapshot.KindActive {
			continue
		}
		if err := s.remakeUpper(rec); err != nil {
			s.log.Error("the folders of a snapshot cannot be made again", "key", rec.Key, "error", err)
		}
	}
}

func (s *Store) remakeUpper(rec *record) error {
	for _, name := range []string{rec.ID, rec.ID + "/work"} {
		if err := unix.Mkdirat(s.dirfd, name, 0o700); err != nil && !errs.IsAny(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdir", Path: filepath.Join(s.layers, name), Err: err}
		}
	}
	err := s.makeRoot(rec)
	if errs.IsAny(err, unix.EEXIST) {
		return nil
	}
	if err == nil {
		s.log.Warn("what was written to a snapshot was lost with the power", "key", rec.Key)
	}
	return err
}
