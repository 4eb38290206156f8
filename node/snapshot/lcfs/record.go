package lcfs

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
)

// record is one snapshot. It does not change: a changed copy takes its place.
type record struct {
	snapshot.Info
	ID    string `json:"id"`
	Depth int    `json:"depth"` // layers in the chain, with itself
	// Opaque: the layer's root hides all that is below.
	Opaque bool `json:"opaque,omitempty"`
	// Upper: the folder of id is there. It is what the layer is, while Delta is
	// empty.
	Upper bool `json:"upper,omitempty"`
	// Delta names the image of what the layer changes, Merged the one of all
	// that its chain shows.
	Delta  string `json:"delta,omitempty"`
	Merged string `json:"merged,omitempty"`
	// Top: somebody asked for the merged image, so it stays.
	Top bool `json:"top,omitempty"`
	// Recipe: there is one, so that the tar can be written again.
	Recipe bool `json:"recipe,omitempty"`
	// RecipeSum is its sha256.
	RecipeSum string `json:"recipeSum,omitempty"`
	// Hidden are objects that the recipe needs, and no tree names: bodies of
	// files that are in the tar again.
	Hidden []hexDigest `json:"hidden,omitempty"`
	// Looks of the chain's root.
	Looks looks `json:"looks"`
	// Size is the sum of the files' bytes; Usage what it takes on disk.
	Usage *snapshot.Usage `json:"usage,omitempty"`
	// Boot: the layer may not survive this boot. Fresh: the images may not,
	// where it has another form.
	Boot  string `json:"boot,omitempty"`
	Fresh string `json:"fresh,omitempty"`
	// Shown are the images that other processes were told to mount.
	Shown []string `json:"shown,omitempty"`
	// claimed marks a key that is being made; nobody but the maker sees it.
	claimed bool
}

// looks are what an upper folder takes from the root below.
type looks struct {
	Mode uint32 `json:"mode"`
	UID  uint32 `json:"uid,omitempty"`
	GID  uint32 `json:"gid,omitempty"`
}

// plainLooks are those of a tree that says nothing of its root.
var plainLooks = looks{Mode: 0o755}

// settled says whether the layer has its final form.
func (r *record) isSettled() bool { return r.Delta != "" }

func (r *record) info() snapshot.Info {
	info := r.Info
	info.Labels = snapshot.MergeLabels(nil, r.Labels) // the caller may change its copy
	return info
}

// enter notes, durably, that the store is open in this boot of the machine.
func (s *Store) enter(ctx context.Context) error {
	return s.db.Update(ctx, func(tx *kv.Tx) error {
		notes := map[string]string{"boot": s.boot, "open": "yes"}
		if s.metacopy {
			notes["partial"] = "yes"
		}
		for name, value := range notes {
			if err := tx.Put(stateBucket, name, []byte(value)); err != nil {
				return err
			}
		}
		return nil
	})
}

// load reads the records, and returns what lies in layers/ without one. Of two
// records with one key, which a crash in the middle of a Remove and a Prepare
// can leave, the newer counts.
func (s *Store) load() (leftovers []leftover, err error) {
	var dropped []string
	err = s.db.View(func(tx *kv.Tx) error {
		s.same = string(tx.Get(stateBucket, "boot")) == s.boot
		s.partial = s.metacopy || tx.Get(stateBucket, "partial") != nil
		// Whoever had it open last did not close it, or its records are lost.
		s.lost.unknown = tx.Get(stateBucket, "open") != nil || tx.Get(stateBucket, "boot") == nil
		return kv.EachJSON(tx, bucket, "", func(id string, rec record) error {
			n, err := parseID(id)
			if err != nil {
				return err
			}
			s.next = max(s.next, n+1)
			if rec.Boot != "" && rec.Boot != s.boot {
				s.log.Warn("layer was lost with the power", "key", rec.Key)
				dropped = append(dropped, id)
				return nil
			}
			if old := s.byKey[rec.Key]; old != nil {
				older, newer := old.ID, id
				if o, _ := parseID(old.ID); o > n {
					older, newer = id, old.ID
				}
				dropped = append(dropped, older)
				if newer != id {
					return nil
				}
			}
			s.byKey[rec.Key] = s.afterReboot(&rec)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	for _, rec := range s.byKey {
		s.children[rec.Parent]++
	}
	for _, id := range dropped {
		s.forget(id)
	}
	s.takeUses()
	if err := s.findGone(); err != nil {
		return nil, err
	}
	return s.leftovers()
}

// afterReboot takes from a record what a loss of power may have taken from
// the disk, and mounts that are over.
func (s *Store) afterReboot(rec *record) *record {
	changed := *rec
	if rec.Fresh != "" && rec.Fresh != s.boot {
		changed.Fresh, changed.Merged = "", ""
		if rec.Upper {
			changed.Delta = ""
		}
	}
	if !s.same {
		changed.Shown = nil
	}
	if changed.Boot != "" || changed.Fresh != "" {
		s.nudge(s.unsafe)
	}
	if rec.Fresh != changed.Fresh || len(rec.Shown) != len(changed.Shown) {
		s.save(&changed)
	}
	return &changed
}

// takeUses takes every Active snapshot and View for mounted, on every folder
// of its chain, where the machine did not boot since; and every unsettled
// layer, whose mount may have outlived the commit.
func (s *Store) takeUses() {
	for _, rec := range s.byKey {
		if !s.same {
			return
		}
		name := byKey(rec.Key)
		if rec.Kind == snapshot.KindCommitted {
			if name = byUpper(rec.ID); rec.isSettled() {
				continue
			}
		}
		u := use{images: rec.Shown, shown: rec.Shown}
		for below := s.byKey[rec.Parent]; below != nil; below = s.byKey[below.Parent] {
			if below.Upper {
				u.uppers = append(u.uppers, below.ID)
			}
		}
		s.uses.add(name, u)
	}
}

// leftovers lists the folders that no record names.
func (s *Store) leftovers() ([]leftover, error) {
	entries, err := os.ReadDir(s.layers)
	if err != nil {
		return nil, err
	}
	named := make(map[string]bool, len(s.byKey))
	for _, rec := range s.byKey {
		if rec.Upper {
			named[rec.ID] = true
		}
	}
	var left []leftover
	for _, e := range entries {
		name := e.Name()
		n, err := parseID(name)
		switch {
		case isAside(name):
		case err != nil || name == emptyFolder || named[name]:
			continue
		default:
			s.next = max(s.next, n+1)
		}
		left = append(left, leftover{name, true})
	}
	return left, nil
}

// Stat describes a snapshot.
func (s *Store) Stat(ctx context.Context, key snapshot.Key) (snapshot.Info, error) {
	rec, err := s.find(key)
	if err != nil {
		return snapshot.Info{}, err
	}
	return rec.info(), ctx.Err()
}

// SetLabels lays labels over those of a snapshot.
func (s *Store) SetLabels(ctx context.Context, key snapshot.Key, labels map[string]string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.findLocked(key)
	if err != nil {
		return err
	}
	merged := snapshot.MergeLabels(rec.Labels, labels)
	if _, _, err := snapshot.IDMaps(merged); err != nil {
		return err
	}
	changed := *rec
	changed.Labels = merged
	s.put(&changed)
	return nil
}

// Walk calls fn for each snapshot in the order of keys.
func (s *Store) Walk(ctx context.Context, fn func(snapshot.Info) error) error {
	recs := s.all()
	slices.SortFunc(recs, func(a, b *record) int { return cmp.Compare(a.Key, b.Key) })
	for _, rec := range recs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(rec.info()); err != nil {
			return err
		}
	}
	return nil
}

// all returns the records as they are now.
func (s *Store) all() []*record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	recs := make([]*record, 0, len(s.byKey))
	for _, rec := range s.byKey {
		if !rec.claimed {
			recs = append(recs, rec)
		}
	}
	return recs
}

func (s *Store) find(key snapshot.Key) (*record, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.findLocked(key)
}

func (s *Store) findLocked(key snapshot.Key) (*record, error) {
	rec := s.byKey[key]
	if rec == nil || rec.claimed {
		return nil, errs.New(errs.NotFound, "no snapshot %.140q", string(key))
	}
	return rec, nil
}

// chainLocked lists the layers that make up the tree of key, topmost first.
// mu is held.
func (s *Store) chainLocked(key snapshot.Key) ([]*record, error) {
	var chain []*record
	for key != "" {
		rec, err := s.findLocked(key)
		if err != nil {
			return nil, errs.New(errs.NotFound, "layer %s was lost", key)
		}
		chain = append(chain, rec)
		if rec.Opaque {
			break
		}
		key = rec.Parent
	}
	return chain, nil
}

func (s *Store) chain(key snapshot.Key) ([]*record, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.chainLocked(key)
}

// change replaces the record of rec by what fn makes of its present state,
// unless the snapshot is gone.
func (s *Store) change(rec *record, fn func(*record)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changeLocked(rec, fn)
}

func (s *Store) changeLocked(rec *record, fn func(*record)) bool {
	now := s.byKey[rec.Key]
	if now == nil || now.ID != rec.ID || now.claimed {
		return false
	}
	changed := *now
	fn(&changed)
	if now.Delta != changed.Delta {
		s.goneLocked(now.Delta, true)
	}
	if now.Merged != changed.Merged {
		s.goneLocked(now.Merged, false)
	}
	s.put(&changed)
	return true
}

// put makes rec the record of its key, in memory and soon on disk. mu is held.
func (s *Store) put(rec *record) {
	s.byKey[rec.Key] = rec
	s.save(rec)
}

func (s *Store) save(rec *record) {
	s.db.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, rec.ID, rec) })
}

func (s *Store) forget(id string) {
	s.db.Later(func(tx *kv.Tx) error { return tx.Delete(bucket, id) })
}

func (s *Store) newID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strconv.FormatUint(s.next, 36)
	s.next++
	return id
}

func parseID(id string) (uint64, error) { return strconv.ParseUint(id, 36, 64) }

// readUmask asks the kernel, for umask(2) can only ask by changing it.
func readUmask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Umask:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return uint32(mask), err
		}
	}
	return 0o777, nil // unknown: then every mode is set explicitly
}
