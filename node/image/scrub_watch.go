package image

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"berth/base/kv"
	"berth/node/snapshot"
	"berth/spec"
)

const (
	scrubBucket = "node.image.scrub"
	stateKey    = "state"
	lastKey     = "last"
	brokenKey   = "damage/" // and what is damaged
)

// scrubs is what is known of scrubs: one runs at a time, and a pass in the
// background makes way for one that somebody waits for.
type scrubs struct {
	mu      sync.Mutex
	asked   bool          // somebody's scrub is running
	done    chan struct{} // closed when it has ended
	last    *spec.ScrubResult
	damage  map[string]brokenPart
	checked int64
	bytes   int64
}

// brokenPart is damage that is still there.
type brokenPart struct {
	spec.Damage
	Keys  []snapshot.Key `json:"keys,omitempty"`
	Found time.Time      `json:"found"`
}

func (b brokenPart) key() string { return brokenKey + b.Part + "/" + b.Name }

func (s *scrubs) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked {
		return false
	}
	s.asked, s.done = true, make(chan struct{})
	return true
}

func (s *scrubs) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = false
	close(s.done)
}

// waiting returns what is closed when the scrub that somebody asked for is
// over; nil where none runs.
func (s *scrubs) waiting() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.asked {
		return nil
	}
	return s.done
}

func (s *scrubs) count(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked++
	s.bytes += bytes
}

// load reads what the last node knew.
func (s *scrubs) load(tx *kv.Tx) error {
	s.damage = map[string]brokenPart{}
	last, found, err := kv.GetJSON[spec.ScrubResult](tx, scrubBucket, lastKey)
	if err != nil {
		return err
	}
	if found {
		s.last = &last
	}
	return kv.EachJSON(tx, scrubBucket, brokenKey, func(key string, b brokenPart) error {
		s.damage[key] = b
		return nil
	})
}

// finished notes the end of a pass. Damage that it did not find again is gone.
func (s *scrubs) finished(ctx context.Context, db *kv.DB, result spec.ScrubResult) error {
	var gone []string
	s.mu.Lock()
	s.last = &result
	for key, b := range s.damage {
		if b.Found.Before(result.Started) {
			gone = append(gone, key)
			delete(s.damage, key)
		}
	}
	s.mu.Unlock()
	return db.Update(ctx, func(tx *kv.Tx) error {
		all := []error{kv.PutJSON(tx, scrubBucket, lastKey, result), tx.Delete(scrubBucket, stateKey)}
		for _, key := range gone {
			all = append(all, tx.Delete(scrubBucket, key))
		}
		return errors.Join(all...)
	})
}

// broken notes damage that stays.
func (s *scrubs) broken(db *kv.DB, d spec.Damage, keys []snapshot.Key) {
	b := brokenPart{d, keys, time.Now().UTC()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damage[b.key()] = b
	db.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, scrubBucket, b.key(), b) })
}

// mended forgets the damage that which fits.
func (s *scrubs) mended(db *kv.DB, which func(brokenPart) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, b := range s.damage {
		if !which(b) {
			continue
		}
		delete(s.damage, key)
		db.Later(func(tx *kv.Tx) error { return tx.Delete(scrubBucket, key) })
	}
}

func (s *scrubs) isBroken(which func(brokenPart) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.damage {
		if which(b) {
			return true
		}
	}
	return false
}

// ofLayer fits damage that the tar of a layer heals.
func ofLayer(key snapshot.Key) func(brokenPart) bool {
	return func(b brokenPart) bool { return slices.Contains(b.Keys, key) }
}

func sameAs(d spec.Damage) func(brokenPart) bool {
	return func(b brokenPart) bool { return b.Part == d.Part && b.Name == d.Name }
}

// LastScrub says how the last whole pass ended; nil where there was none.
func (s *Set) LastScrub() *spec.ScrubResult {
	s.scrubs.mu.Lock()
	defer s.scrubs.mu.Unlock()
	return s.scrubs.last
}

// ScrubRead counts what scrubs have read since the node started.
func (s *Set) ScrubRead() (parts, bytes int64) {
	s.scrubs.mu.Lock()
	defer s.scrubs.mu.Unlock()
	return s.scrubs.checked, s.scrubs.bytes
}

// Damage lists what is known to be damaged, by part and name.
func (s *Set) Damage() []spec.Damage {
	s.scrubs.mu.Lock()
	defer s.scrubs.mu.Unlock()
	var all []spec.Damage
	for _, key := range slices.Sorted(maps.Keys(s.scrubs.damage)) {
		all = append(all, s.scrubs.damage[key].Damage)
	}
	return all
}

// The pass in the background.
const (
	firstScrub = 10 * time.Minute // after the start of a node that has never scrubbed
	nextScrub  = time.Minute      // after the start of one that was broken off
	retryScrub = time.Hour        // after a failure
	slowest    = 2 << 20          // bytes a second
	fastest    = 32 << 20
	// haste is how many times faster than it had to be a pass is.
	haste = 8
)

// ScrubEvery scrubs in the background until ctx is done, every so many days;
// never where that is 0. A pass is slow on purpose, goes on after a restart
// where it was, and makes way for one that somebody asks for.
func (s *Set) ScrubEvery(ctx context.Context, days int) error {
	for days > 0 {
		state, wait, err := s.nextPass(time.Duration(days) * 24 * time.Hour)
		if err != nil {
			return err
		}
		if err := rest(ctx, wait); err != nil {
			return err
		}
		run := &scrub{set: s, repair: true, tell: func(spec.ScrubProgress) {}, save: s.saveScrub}
		run.pace = s.paced(days, state.Started)
		err = run.all(ctx, state)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, errSuperseded):
			s.Log.WarnContext(ctx, "a scrub in the background failed, and is tried again", "err", err)
			if err := rest(ctx, retryScrub); err != nil {
				return err
			}
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// nextPass says from where and when the next pass goes on.
func (s *Set) nextPass(every time.Duration) (state scrubState, wait time.Duration, err error) {
	begun := false
	err = s.DB.View(func(tx *kv.Tx) (err error) {
		state, begun, err = kv.GetJSON[scrubState](tx, scrubBucket, stateKey)
		return err
	})
	last := s.LastScrub()
	switch {
	case err != nil:
		return state, 0, err
	case begun && (last == nil || last.Ended.Before(state.Started)):
		return state, nextScrub, nil
	case last == nil:
		wait = firstScrub
	default:
		wait = max(nextScrub, time.Until(last.Ended.Add(every)))
	}
	return scrubState{Started: time.Now().UTC().Add(wait)}, wait, nil
}

func (s *Set) saveScrub(state scrubState) {
	s.DB.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, scrubBucket, stateKey, state) })
}

// errSuperseded ends a pass in the background that has become needless.
var errSuperseded = errors.New("somebody has scrubbed meanwhile")

// paced lets a pass read so fast that it takes a small part of its period.
func (s *Set) paced(days int, started time.Time) func(ctx context.Context, bytes int64) error {
	rate := int64(0)
	var owed time.Duration
	return func(ctx context.Context, bytes int64) error {
		if rate == 0 {
			rate = min(max(s.toRead(ctx)*haste/int64(days*24*3600), slowest), fastest)
		}
		if done := s.scrubs.waiting(); done != nil {
			select {
			case <-done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if last := s.LastScrub(); last != nil && last.Ended.After(started) {
				return errSuperseded
			}
		}
		owed += time.Duration(bytes * int64(time.Second) / rate)
		if owed < 20*time.Millisecond {
			return ctx.Err()
		}
		wait := owed
		owed = 0
		return rest(ctx, wait)
	}
}

func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
