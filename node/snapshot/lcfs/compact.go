package lcfs

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"berth/node/snapshot"
)

// mergeEvery is how many layers lie between two merged images in the middle
// of a chain.
const mergeEvery = 8

// changed notes that a layer was committed: what is done in the background
// waits until that has not happened for a while.
func (s *Store) changed() {
	s.busySince.Store(int64(time.Since(s.opened)))
	s.nudge(s.tidy)
}

// mergeChain makes the merged image of a settled chain. Top says that mounts
// want it, so that it is kept.
func (s *Store) mergeChain(ctx context.Context, key snapshot.Key, top bool) error {
	rec, letGoChain, err := s.pin(key)
	if err != nil {
		return err
	}
	defer letGoChain()
	s.merging.Lock() // whoever wants the same finds it made
	defer s.merging.Unlock()
	if !s.unmerged(key) {
		if top && rec.Merged != "" && !rec.Top {
			s.change(rec, func(r *record) { r.Top = true })
		}
		return nil
	}
	c, err := s.chainTree(ctx, key)
	if err != nil {
		return err
	}
	image, letGo, err := s.writeImage(c.root)
	if err != nil {
		return err
	}
	defer letGo()
	s.change(rec, func(r *record) {
		r.Merged, r.Fresh = image, s.boot
		r.Top = r.Top || top
	})
	s.nudge(s.unsafe)
	return nil
}

// unmerged says whether the chain of key is settled, and several layers.
func (s *Store) unmerged(key snapshot.Key) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.unmergedLocked(key) > 1
}

// unmergedLocked counts the layers from key down to a merged image, with it; 0
// if one is not settled, or lost. mu is held.
func (s *Store) unmergedLocked(key snapshot.Key) int {
	chain, err := s.chainLocked(key)
	if err != nil {
		return 0
	}
	n := 0
	for _, rec := range chain {
		n++
		if rec.Merged != "" {
			return n
		}
		if !rec.isSettled() {
			return 0
		}
	}
	return n
}

// toMerge lists chains that deserve a merged image: those that end here or
// that something was mounted on, and every few layers of the others.
func (s *Store) toMerge() []snapshot.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	layered, mounted := map[snapshot.Key]bool{}, map[snapshot.Key]bool{} // has a layer on it, something else
	for _, rec := range s.byKey {
		if rec.Kind == snapshot.KindCommitted {
			layered[rec.Parent] = true
		} else {
			mounted[rec.Parent] = true
		}
	}
	var tops, middles []snapshot.Key
	covered := map[snapshot.Key]bool{} // below a layer that is merged, or will be
	for key, rec := range s.byKey {
		if rec.claimed || rec.Kind != snapshot.KindCommitted || !rec.isSettled() {
			continue
		}
		wanted := !layered[key] || mounted[key] || rec.Top
		switch {
		case rec.Merged != "":
			s.coverLocked(covered, rec.Parent)
		case s.unmergedLocked(key) < 2:
		case wanted:
			tops = append(tops, key)
			s.coverLocked(covered, rec.Parent)
		case s.unmergedLocked(key) > mergeEvery && (rec.Depth%mergeEvery == 0):
			middles = append(middles, key)
		}
	}
	return append(tops, slices.DeleteFunc(middles, func(key snapshot.Key) bool { return covered[key] })...)
}

// coverLocked marks key and all below it. mu is held.
func (s *Store) coverLocked(covered map[snapshot.Key]bool, key snapshot.Key) {
	for rec := s.byKey[key]; rec != nil && !covered[rec.Key]; rec = s.byKey[rec.Parent] {
		covered[rec.Key] = true
	}
}

// dropMerged forgets merged images in the middle of chains that nobody asked
// for, and that are the first on the way down from nowhere: what lies on them
// has one of its own.
func (s *Store) dropMerged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	layered, needed := map[snapshot.Key]bool{}, map[snapshot.Key]bool{}
	for _, rec := range s.byKey {
		layered[rec.Parent] = true
	}
	for key, rec := range s.byKey {
		if layered[key] {
			continue
		}
		for rec != nil && rec.Merged == "" {
			rec = s.byKey[rec.Parent]
		}
		if rec != nil {
			needed[rec.Key] = true
		}
	}
	for key, rec := range s.byKey {
		if rec.Merged != "" && !rec.Top && !needed[key] && !rec.claimed {
			s.changeLocked(rec, func(r *record) { r.Merged = "" })
		}
	}
}

// tidyMost is the longest pause before what failed is tried again, while
// nothing else happens.
const tidyMost = 2 * time.Minute

// tidyLoop works in the background when the store is quiet: it settles, gives
// folders back, merges and sweeps.
func (s *Store) tidyLoop(ctx context.Context) {
	pause := s.quiet
	again := time.NewTimer(0)
	again.Stop()
	for {
		select {
		case <-s.tidy: // something happened
			pause = s.quiet
		case <-again.C:
			pause = min(2*pause, max(tidyMost, s.quiet))
		case <-ctx.Done():
			return
		}
		for {
			wait := s.quiet - (time.Since(s.opened) - time.Duration(s.busySince.Load()))
			if wait <= 0 {
				break
			}
			if !snapshot.Rest(ctx, wait) {
				return
			}
		}
		done := s.tidyUp(ctx)
		if !snapshot.Rest(ctx, s.quiet) { // not at once for each container that ends
			return
		}
		if !done {
			again.Reset(pause)
		}
	}
}

// tidyUp does what there is to do, and says whether that is all for now.
func (s *Store) tidyUp(ctx context.Context) bool {
	done := true
	failed := func(doing string, key snapshot.Key, err error) {
		if err != nil && ctx.Err() == nil {
			done = false
			s.log.WarnContext(ctx, "work on layers is put off", "doing", doing, "key", key, "error", err)
		}
	}
	for _, rec := range s.unsettled() {
		if ctx.Err() != nil {
			return true
		}
		switch err := s.settle(ctx, rec); {
		case errors.Is(err, errBusy):
			done = false
		default:
			failed("settle", rec.Key, err)
		}
	}
	for _, key := range s.toMerge() {
		if ctx.Err() != nil {
			return true
		}
		failed("merge", key, s.mergeChain(ctx, key, false))
	}
	s.dropMerged()
	s.dropStaleUses()
	s.dropUppers()
	failed("hide images", "", s.hideImages())
	failed("sweep", "", s.sweepImages(ctx))
	s.trees.clear()
	return done
}

// unsettled lists layers that are folders still, those at the bottom first.
func (s *Store) unsettled() []*record {
	var recs []*record
	for _, rec := range s.all() {
		if rec.Kind == snapshot.KindCommitted && !rec.isSettled() {
			recs = append(recs, rec)
		}
	}
	slices.SortFunc(recs, func(a, b *record) int { return cmp.Compare(a.Depth, b.Depth) })
	return recs
}
