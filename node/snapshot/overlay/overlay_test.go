package overlay_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
	"berth/node/snapshot/overlay"
	"berth/node/snapshot/snapshottest"
)

// opened closes the records together with the store.
type opened struct {
	*overlay.Store
	db *kv.DB
}

func (o opened) Close() error {
	if err := o.Store.Close(); err != nil {
		return err
	}
	return o.db.Close()
}

func open(t testing.TB, dir string) opened {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := overlay.Open(t.Context(), overlay.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return opened{s, db}
}

func TestSuite(t *testing.T) {
	snapshottest.Suite(t, func(t *testing.T, dir string) snapshot.Store { return open(t, dir) })
}

func TestRandomHistory(t *testing.T) {
	snapshottest.RandomHistory(t, fakesnapshot.Keeping(), func(t *testing.T, dir string) snapshot.Store { return open(t, dir) })
}
