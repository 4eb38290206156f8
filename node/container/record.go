package container

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"berth/base/kv"
	"berth/spec"
)

const (
	bucket          = "container"
	givenBucket     = "given" // what clients wrote of containers, by the same keys
	tombstoneBucket = "tombstone"
	// tombstoneAge is how long the end of a removed container is remembered, and
	// tombstonesMost of how many at most.
	tombstoneAge   = 10 * time.Minute
	tombstonesMost = 1024
)

// record is the durable form of a container.
type record struct {
	Container spec.Container   `json:"container"`
	Image     spec.ImageConfig `json:"image"`
	Boot      string           `json:"boot"` // in which it was written
	Retries   int              `json:"retries,omitempty"`
	// DropVolumes goes with the state removing.
	DropVolumes bool `json:"dropVolumes,omitempty"`
	// Request and Dismissed: see container.
	Request   *TaskRequest `json:"request,omitempty"`
	Dismissed bool         `json:"dismissed,omitempty"`

	given *spec.Given // from a bucket of its own, for it is big and hardly changes
	fresh bool        // given is not in that bucket yet
}

// tombstone is how a removed container ended.
type tombstone struct {
	Exit    spec.Exit `json:"exit"`
	Removed time.Time `json:"removed"`
}

// records keeps the durable copies.
type records struct {
	db    *kv.DB
	boot  string
	owned string // folder of what is written of owned containers and is not durable yet
	log   *slog.Logger

	mu         sync.Mutex
	writes     map[string]uint64 // of owned containers' files that are there: which write it was
	written    uint64
	tombstones map[string]tombstone
	oldest     []string // ids of tombstones in the order of their removal
}

func openRecords(c *Config) (*records, []record, error) {
	r := &records{
		db: c.DB, boot: c.Boot, owned: filepath.Join(c.State, "given"), log: c.Log,
		tombstones: map[string]tombstone{}, writes: map[string]uint64{},
	}
	var found []record
	err := r.db.View(func(tx *kv.Tx) error {
		err := kv.EachJSON(tx, bucket, "", func(key string, rec record) error {
			if rec.Container.Namespace != "" {
				given, _, err := kv.GetJSON[spec.Given](tx, givenBucket, key)
				if err != nil {
					return err
				}
				rec.given = &given
			}
			found = append(found, rec)
			return nil
		})
		if err != nil {
			return err
		}
		return kv.EachJSON(tx, tombstoneBucket, "", func(id string, t tombstone) error {
			r.tombstones[id] = t
			return nil
		})
	})
	if err == nil {
		found, err = r.readOwned(found)
	}
	r.oldest = slices.SortedFunc(maps.Keys(r.tombstones), func(a, b string) int {
		return r.tombstones[a].Removed.Compare(r.tombstones[b].Removed)
	})
	return r, found, err
}

// write makes the container's record durable before it returns.
func (r *records) write(ctx context.Context, c *container) error {
	given := c.given.Load()
	if given != nil && given.Owned {
		return r.writeOwned(c)
	}
	err := r.db.Update(ctx, func(tx *kv.Tx) error { return r.put(tx, c) })
	if err == nil {
		c.mu.Lock()
		c.recorded = given
		c.mu.Unlock()
	}
	return err
}

// note writes the container's record with the next commit.
func (r *records) note(c *container) {
	r.db.Later(func(tx *kv.Tx) error { return r.put(tx, c) })
}

// put writes the container as it is by the time of the commit.
func (r *records) put(tx *kv.Tx, c *container) error {
	if c.isGone() {
		return nil
	}
	c.mu.Lock()
	rec := record{
		Container: *c.view.Load(), Image: c.image, Boot: r.boot, Retries: c.retries, DropVolumes: c.dropVolumes,
		Request: c.request, Dismissed: c.dismissed,
	}
	given, fresh := c.given.Load(), c.given.Load() != c.recorded
	c.mu.Unlock()
	if fresh {
		if err := kv.PutJSON(tx, givenBucket, c.id, given); err != nil {
			return err
		}
	}
	return kv.PutJSON(tx, bucket, c.id, rec)
}

// remove puts a tombstone in the place of the container's record.
func (r *records) remove(ctx context.Context, c *container) error {
	stone := tombstone{Exit: exitOf(c.get()), Removed: time.Now()}
	c.gone.Store(true)
	old := r.tooOld(stone.Removed)
	bury := func(tx *kv.Tx) error {
		for _, id := range old {
			if err := tx.Delete(tombstoneBucket, id); err != nil {
				return err
			}
		}
		for _, name := range []string{bucket, givenBucket} {
			if err := tx.Delete(name, c.id); err != nil {
				return err
			}
		}
		return kv.PutJSON(tx, tombstoneBucket, c.id, stone)
	}
	var err error
	if given := c.given.Load(); given != nil && given.Owned {
		err = r.removeOwned(c.id, bury)
	} else {
		err = r.db.Update(ctx, bury)
	}
	if err != nil {
		c.gone.Store(false)
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range old {
		delete(r.tombstones, id)
	}
	r.tombstones[c.id] = stone
	r.oldest = append(r.oldest, c.id)
	return nil
}

// tooOld takes the tombstones out of the order that have had their time, or for
// which there is no room beside one more.
func (r *records) tooOld(now time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.oldest) && (len(r.oldest)-n >= tombstonesMost || now.Sub(r.tombstones[r.oldest[n]].Removed) > tombstoneAge) {
		n++
	}
	old := slices.Clone(r.oldest[:n])
	r.oldest = r.oldest[n:]
	return old
}

// exit is how a removed container ended.
func (r *records) exit(id string) (spec.Exit, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stone, ok := r.tombstones[id]
	return stone.Exit, ok && time.Since(stone.Removed) <= tombstoneAge
}
