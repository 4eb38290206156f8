package overlay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Prepare makes a writable snapshot: three folders and a record.
func (s *Store) Prepare(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error) {
	rec, err := s.records.Claim(ctx, snapshot.KindActive, key, parent, labels)
	if err != nil {
		return snapshot.Active{}, fmt.Errorf("prepare snapshot: %w", err)
	}
	if err := s.makeUpper(rec); err != nil {
		s.records.Release(rec)
		s.sweeper.Add(rec.ID)
		return snapshot.Active{}, fmt.Errorf("prepare snapshot %s: %w", key, errs.Full(err))
	}
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

// makeUpper makes the folders of an Active snapshot. The root of the tree is
// the upper folder, so it takes mode and owner from the layer below.
func (s *Store) makeUpper(rec *snapshot.Record) error {
	if err := unix.Mkdirat(s.dirfd, rec.ID, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: filepath.Join(s.dir, rec.ID), Err: err}
	}
	if err := unix.Mkdirat(s.dirfd, rec.ID+"/work", 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: filepath.Join(s.dir, rec.ID, "work"), Err: err}
	}
	mode, uid, gid := uint32(0o755), uint32(0), uint32(0)
	if below, err := s.records.Find(rec.Parent); err == nil {
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
	for _, rec := range s.records.All() {
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
