package container

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"berth/base/kv"
	"berth/spec"
)

// However many containers are removed, in memory and in the database only so
// many of their ends are remembered, the newest.
func TestTombstonesAreBounded(t *testing.T) {
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	config := &Config{DB: db, State: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	const more = 40
	stones := make([]string, 0, tombstonesMost+more)
	for i := range tombstonesMost + more {
		stones = append(stones, fmt.Sprintf("%04d", i))
	}
	// As if most had been removed before, for each takes the disk its time.
	if err := db.Update(t.Context(), func(tx *kv.Tx) error {
		for _, id := range stones[:tombstonesMost-more] {
			if err := kv.PutJSON(tx, tombstoneBucket, id, tombstone{}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r, _, err := openRecords(config)
	if err != nil {
		t.Fatal(err)
	}
	for id := range r.tombstones { // they are of now
		r.tombstones[id] = tombstone{Removed: time.Now()}
	}
	for _, id := range stones[tombstonesMost-more:] {
		if err := r.remove(t.Context(), newContainer(record{Container: spec.Container{ID: id}})); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.tombstones); n != tombstonesMost || len(r.oldest) != n {
		t.Errorf("%d ends are remembered, in an order of %d", n, len(r.oldest))
	}
	if _, known := r.exit(stones[len(stones)-1]); !known {
		t.Error("the newest is not known")
	}
	again, _, err := openRecords(config)
	if err != nil || len(again.tombstones) != tombstonesMost {
		t.Errorf("the next node remembers %d (%v)", len(again.tombstones), err)
	}
}
