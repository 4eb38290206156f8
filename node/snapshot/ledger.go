package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"berth/base/errs"
	"berth/base/kv"
)

// Record is what a driver keeps of one snapshot. It does not change: a changed
// copy takes its place.
type Record struct {
	Info
	ID     string `json:"id"`    // of its folder; never used again
	Depth  int    `json:"depth"` // layers in the chain, with itself
	Opaque bool   `json:"opaque,omitempty"`
	Usage  *Usage `json:"usage,omitempty"`
	// Boot is the boot of the machine in which the snapshot was made, until its
	// files are synced.
	Boot string `json:"boot,omitempty"`
	// Own is whatever else the driver keeps.
	Own map[string]string `json:"own,omitempty"`
	// claimed marks a key that is being made; nobody but the maker sees it.
	claimed bool
}

// describe is the Info of a record; the caller may change its copy.
func (r *Record) describe() Info {
	info := r.Info
	info.Labels = MergeLabels(nil, r.Labels)
	return info
}

// Ledger keeps the records of a driver: in memory for who asks, and in a
// bucket of the node's records under their IDs. It keeps the promises of Store
// that concern keys, parents and labels.
//
// What is written joins the next durable record of anybody. Its lock is the
// only one that is held while records are handed on, and nothing slow happens
// under it.
type Ledger struct {
	db     *kv.DB
	bucket string
	unsafe chan struct{} // holds a token while some record has a Boot

	mu       sync.RWMutex
	byKey    map[Key]*Record
	children map[Key]int // by parent, whether or not the parent exists
	next     uint64
}

// OpenLedger reads the records in bucket. Those for which lost is true are
// dropped, and of two with one key, which a crash in the middle of a Remove
// and a Prepare can leave, the older.
func OpenLedger(db *kv.DB, bucket string, lost func(*Record) bool, log *slog.Logger) (*Ledger, error) {
	l := &Ledger{
		db: db, bucket: bucket, unsafe: make(chan struct{}, 1),
		byKey: map[Key]*Record{}, children: map[Key]int{},
	}
	var dropped []string
	err := db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, bucket, "", func(id string, rec Record) error {
			if err := l.Met(id); err != nil {
				return err
			}
			if lost(&rec) {
				log.Warn("layer was lost with the power", "key", rec.Key)
				dropped = append(dropped, id)
				return nil
			}
			if old := l.byKey[rec.Key]; old != nil {
				if isOlder(rec.ID, old.ID) {
					dropped = append(dropped, rec.ID)
					return nil
				}
				dropped = append(dropped, old.ID)
			}
			l.byKey[rec.Key] = &rec
			return nil
		})
	})
	for _, rec := range l.byKey {
		l.children[rec.Parent]++
		if rec.Boot != "" {
			l.markUnsafe()
		}
	}
	for _, id := range dropped {
		l.forget(id)
	}
	return l, err
}

func isOlder(a, b string) bool {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) < 0
}

// Met keeps an ID that is in use, if only by what a crash left, from being
// given out. It fails for what is no ID.
func (l *Ledger) Met(id string) error {
	n, err := strconv.ParseUint(id, 36, 64)
	if err == nil {
		l.next = max(l.next, n+1)
	}
	return err
}

// NewID gives out an ID.
func (l *Ledger) NewID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := strconv.FormatUint(l.next, 36)
	l.next++
	return id
}

// All returns the records that are there, in the order of keys.
func (l *Ledger) All() []*Record {
	l.mu.RLock()
	recs := make([]*Record, 0, len(l.byKey))
	for _, rec := range l.byKey {
		if !rec.claimed {
			recs = append(recs, rec)
		}
	}
	l.mu.RUnlock()
	slices.SortFunc(recs, func(a, b *Record) int { return cmp.Compare(a.Key, b.Key) })
	return recs
}

// Find returns the record of key. NotFound: no such key.
func (l *Ledger) Find(key Key) (*Record, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.find(key)
}

func (l *Ledger) find(key Key) (*Record, error) {
	rec := l.byKey[key]
	if rec == nil || rec.claimed {
		return nil, errs.New(errs.NotFound, "no snapshot %.140q", string(key))
	}
	return rec, nil
}

// Mountable is Find for what can be mounted.
func (l *Ledger) Mountable(key Key) (*Record, error) {
	rec, err := l.Find(key)
	if err == nil && rec.Kind == KindCommitted {
		return nil, errs.New(errs.Conflict, "snapshot %s is committed: make a view of it", key)
	}
	return rec, err
}

// Chain lists the layers from key down to the first for which last is true.
// NotFound: one of them was lost.
func (l *Ledger) Chain(key Key, last func(*Record) bool) ([]*Record, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var chain []*Record
	for key != "" {
		rec, err := l.find(key)
		if err != nil {
			return nil, errs.New(errs.NotFound, "layer %s was lost", key)
		}
		chain = append(chain, rec)
		if last(rec) {
			break
		}
		key = rec.Parent
	}
	return chain, nil
}

// Claim takes key, so that nobody else does while its folders are made, and
// pins parent. It ends with Settle or Release.
func (l *Ledger) Claim(ctx context.Context, kind Kind, key, parent Key, labels map[string]string) (*Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := key.Check(); err != nil {
		return nil, err
	}
	if _, _, err := IDMaps(labels); err != nil {
		return nil, err
	}
	id := l.NewID()
	l.mu.Lock()
	defer l.mu.Unlock()
	depth, err := l.standOn(key, parent)
	if err != nil {
		return nil, err
	}
	rec := &Record{
		Info: Info{Key: key, Parent: parent, Kind: kind, Created: time.Now().UTC(), Labels: MergeLabels(nil, labels)},
		ID:   id, Depth: depth, claimed: true,
	}
	l.byKey[key] = rec
	l.children[parent]++
	return rec, nil
}

// standOn checks that key is free and parent can carry it, and returns the
// depth of key. mu is held.
func (l *Ledger) standOn(key, parent Key) (int, error) {
	if l.byKey[key] != nil {
		return 0, errs.New(errs.Exists, "snapshot %s exists", key)
	}
	if parent == "" {
		return 1, nil
	}
	below, err := l.find(parent)
	if err != nil {
		return 0, errs.New(errs.NotFound, "no parent snapshot %.140q", string(parent))
	}
	if below.Kind != KindCommitted {
		return 0, errs.New(errs.Conflict, "snapshot %s is %s: only a committed one can be a parent", parent, below.Kind)
	}
	if below.Depth >= MaxDepth {
		return 0, errs.New(errs.Exhausted, "snapshot %s has %d layers below already", parent, below.Depth)
	}
	return below.Depth + 1, nil
}

// Release gives up what Claim took.
func (l *Ledger) Release(rec *Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byKey, rec.Key)
	l.unpin(rec.Parent)
}

// Settle shows a claimed record to everybody.
func (l *Ledger) Settle(claimed *Record) Info {
	rec := *claimed
	rec.claimed = false
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(&rec)
	return rec.describe()
}

// unpin counts a child of parent less. mu is held.
func (l *Ledger) unpin(parent Key) {
	if l.children[parent]--; l.children[parent] == 0 {
		delete(l.children, parent)
	}
}

// put makes rec the record of its key, in memory and soon on disk. mu is held.
func (l *Ledger) put(rec *Record) {
	l.byKey[rec.Key] = rec
	if rec.Boot != "" {
		l.markUnsafe()
	}
	l.db.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, l.bucket, rec.ID, rec) })
}

func (l *Ledger) forget(id string) {
	l.db.Later(func(tx *kv.Tx) error { return tx.Delete(l.bucket, id) })
}

// Commit makes the Active snapshot the layer name, of this boot: its folder is
// where a layer's folder belongs already.
func (l *Ledger) Commit(ctx context.Context, name, active Key, labels map[string]string, boot string) (Committed, error) {
	if err := ctx.Err(); err != nil {
		return Committed{}, err
	}
	if err := name.Check(); err != nil {
		return Committed{}, fmt.Errorf("commit snapshot: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rec, err := l.find(active)
	switch {
	case err != nil:
		return Committed{}, fmt.Errorf("commit snapshot: %w", err)
	case rec.Kind != KindActive:
		return Committed{}, errs.New(errs.Conflict, "commit snapshot: %s is %s, not active", active, rec.Kind)
	case l.byKey[name] != nil:
		return Committed{}, errs.New(errs.Exists, "commit snapshot: %s exists", name)
	}
	layer := *rec
	layer.Key, layer.Kind, layer.Created = name, KindCommitted, time.Now().UTC()
	layer.Labels = MergeLabels(rec.Labels, labels)
	layer.Boot = boot
	delete(l.byKey, active)
	l.put(&layer)
	return Committed{Info: layer.describe()}, nil
}

// Remove forgets the record of key and returns what it was.
func (l *Ledger) Remove(ctx context.Context, key Key) (*Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rec, err := l.find(key)
	if err == nil && l.children[key] > 0 {
		err = errs.New(errs.Conflict, "snapshot %s has %d children", key, l.children[key])
	}
	if err != nil {
		return nil, fmt.Errorf("remove snapshot: %w", err)
	}
	delete(l.byKey, key)
	l.unpin(rec.Parent)
	l.forget(rec.ID)
	return rec, nil
}

// Stat describes a snapshot.
func (l *Ledger) Stat(ctx context.Context, key Key) (Info, error) {
	rec, err := l.Find(key)
	if err != nil {
		return Info{}, err
	}
	return rec.describe(), ctx.Err()
}

// SetLabels lays labels over those of a snapshot.
func (l *Ledger) SetLabels(ctx context.Context, key Key, labels map[string]string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rec, err := l.find(key)
	if err != nil {
		return err
	}
	merged := MergeLabels(rec.Labels, labels)
	if _, _, err := IDMaps(merged); err != nil {
		return err
	}
	changed := *rec
	changed.Labels = merged
	l.put(&changed)
	return nil
}

// Walk calls fn for each snapshot in the order of keys.
func (l *Ledger) Walk(ctx context.Context, fn func(Info) error) error {
	for _, rec := range l.All() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(rec.describe()); err != nil {
			return err
		}
	}
	return nil
}

// Change lays change over the record, if it still is that of its key.
func (l *Ledger) Change(rec *Record, change func(*Record)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.byKey[rec.Key]; now != nil && now.ID == rec.ID {
		changed := *now
		change(&changed)
		l.put(&changed)
	}
}

// Unsafe delivers a token some time after a record came to have a Boot.
func (l *Ledger) Unsafe() <-chan struct{} { return l.unsafe }

func (l *Ledger) markUnsafe() {
	select {
	case l.unsafe <- struct{}{}:
	default: // the last token has yet to be taken
	}
}

// Sync takes the Boot from all records that have one when it begins, after
// sync, which makes their files safe. Everything that was written before is
// durable when it returns.
func (l *Ledger) Sync(ctx context.Context, sync func() error) error {
	var waiting []*Record
	for _, rec := range l.All() {
		if rec.Boot != "" {
			waiting = append(waiting, rec)
		}
	}
	if len(waiting) > 0 {
		if err := sync(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	for _, rec := range waiting {
		// The same folder may have another record by now, and another key.
		if now := l.byKey[rec.Key]; now != nil && now.ID == rec.ID && now.Kind == rec.Kind && now.Boot != "" {
			safe := *now
			safe.Boot = ""
			l.put(&safe)
		}
	}
	l.mu.Unlock()
	return l.Flush(ctx)
}

// Flush returns when everything that was written before is durable.
func (l *Ledger) Flush(ctx context.Context) error {
	return l.db.Update(ctx, func(*kv.Tx) error { return nil })
}
