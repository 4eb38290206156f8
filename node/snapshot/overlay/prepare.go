package overlay

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
	if err := s.makeUpper(rec); err != nil {
		s.release(rec)
		s.sweeper.add(rec.ID)
		return snapshot.Active{}, fmt.Errorf("prepare snapshot %s: %w", key, full(err))
	}
	return snapshot.Active{Info: s.settle(rec)}, nil
}

// View makes a snapshot for reading: a record, no more.
func (s *Store) View(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.View, error) {
	rec, err := s.claim(ctx, snapshot.KindView, key, parent, labels)
	if err != nil {
		return snapshot.View{}, fmt.Errorf("view snapshot: %w", err)
	}
	return snapshot.View{Info: s.settle(rec)}, nil
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
	depth, err := s.standOn(key, parent)
	if err != nil {
		return nil, err
	}
	rec := &record{
		Info: snapshot.Info{
			Key: key, Parent: parent, Kind: kind, Created: time.Now().UTC(),
			Labels: snapshot.MergeLabels(nil, labels),
		},
		ID: id, Depth: depth, claimed: true,
	}
	s.byKey[key] = rec
	s.children[parent]++
	return rec, nil
}

// standOn checks that key is free and parent can carry it, and returns the
// depth of key. mu is held.
func (s *Store) standOn(key, parent snapshot.Key) (int, error) {
	if s.byKey[key] != nil {
		return 0, errs.New(errs.Exists, "snapshot %s exists", key)
	}
	if parent == "" {
		return 1, nil
	}
	below, err := s.findLocked(parent)
	if err != nil {
		return 0, errs.New(errs.NotFound, "no parent snapshot %.140q", string(parent))
	}
	if below.Kind != snapshot.KindCommitted {
		return 0, errs.New(errs.Conflict, "snapshot %s is %s: only a committed one can be a parent", parent, below.Kind)
	}
	if below.Depth >= snapshot.MaxDepth {
		return 0, errs.New(errs.Exhausted, "snapshot %s has %d layers below already", parent, below.Depth)
	}
	return below.Depth + 1, nil
}

// release gives up what claim took.
func (s *Store) release(rec *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, rec.Key)
	s.unpin(rec.Parent)
}

// settle shows a claimed record to everybody.
func (s *Store) settle(claimed *record) snapshot.Info {
	rec := *claimed
	rec.claimed = false
	s.mu.Lock()
	defer s.mu.Unlock()
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
// the upper folder, so it takes mode and owner from the layer below.
func (s *Store) makeUpper(rec *record) error {
	if err := unix.Mkdirat(s.dirfd, rec.ID, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: filepath.Join(s.dir, rec.ID), Err: err}
	}
	if err := unix.Mkdirat(s.dirfd, rec.ID+"/work", 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: filepath.Join(s.dir, rec.ID, "work"), Err: err}
	}
	mode, uid, gid := uint32(0o755), uint32(0), uint32(0)
	if below, err := s.find(rec.Parent); err == nil {
		var st unix.Stat_t
		if err := unix.Fstatat(s.dirfd, below.ID+"/fs", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: s.fs(below.ID), Err: err}
		}
		mode, uid, gid = st.Mode&0o7777, st.Uid, st.Gid
	}
	fs := rec.ID + "/fs"
	if err := unix.Mkdirat(s.dirfd, fs, mode); err != nil {
		return &os.PathError{Op: "mkdir", Path: s.fs(rec.ID), Err: err}
	}
	if uid|gid != 0 {
		if err := unix.Fchownat(s.dirfd, fs, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chown", Path: s.fs(rec.ID), Err: err}
		}
	}
	if mode&(s.umask|0o7000) != 0 {
		if err := unix.Fchmodat(s.dirfd, fs, mode, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: s.fs(rec.ID), Err: err}
		}
	}
	return nil
}

// remakeUppers makes the folders again that Active snapshots have lost. A
// record may reach the disk before the folders that were made for it, because
// a loss of power takes back what was not synced; what was written in them is
// gone with them.
func (s *Store) remakeUppers() {
	for _, rec := range s.byKey {
		if rec.Kind != snapshot.KindActive || s.hasUpper(rec.ID) {
			continue
		}
		s.log.Warn("what was written to a snapshot was lost with the power", "key", rec.Key)
		err := os.RemoveAll(filepath.Join(s.dir, rec.ID))
		if err == nil {
			err = s.makeUpper(rec)
		}
		if err != nil {
			s.log.Error("the folders of a snapshot cannot be made again", "key", rec.Key, "error", err)
		}
	}
}

func (s *Store) hasUpper(id string) bool { return s.has(id+"/fs") && s.has(id+"/work") }

func (s *Store) has(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(s.dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}
