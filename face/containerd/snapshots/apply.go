package snapshots

import (
	"cmp"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Tar is the tar of a layer on its way to a snapshot.
type Tar interface {
	io.ReadCloser
	// Sum reads to the end, and says what was read.
	Sum() (diff digest.Digest, size int64, err error)
}

// Applied is what a layer unpacks to.
type Applied struct {
	Diff digest.Digest
	Size int64 // of the tar
}

// unpacked is a layer for an active snapshot. It lies beside it until the
// snapshot is committed, or somebody wants to see it.
type unpacked struct {
	Applied
	blob   digest.Digest
	ingest snapshot.Ingest
	known  snapshot.Key // instead of ingest: a layer that is there
	spare  snapshot.Key // instead of ingest: a layer made of it, to be shown
	of     name         // that holds known, or spare
	// showing is closed when it is no longer being written into the tree; nil
	// while it is not. dropped says that it is to go then. mu guards both.
	showing chan struct{}
	dropped bool
}

// Apply unpacks the layer that open opens, the blob of this digest, into the
// active snapshot that mounts show. The tar goes straight into the store; if
// another client just unpacks the same layer, or it is there, not even that.
//
// Unsupported: the mounts are none of this service's, or something is in the
// snapshot already. They can be written to by whoever mounts them, then.
func (s *Service) Apply(ctx context.Context, mounts []snapshot.Mount, blob digest.Digest, open func(context.Context) (Tar, error)) (Applied, error) {
	rec, err := s.fresh(ctx, mounts)
	if err != nil {
		return Applied{}, err
	}
	n := rec.name()
	if err := s.markApplied(n); err != nil {
		return Applied{}, err
	}
	u := &unpacked{blob: blob}
	if err := s.bring(ctx, rec, u, open); err != nil {
		s.unmarkApplied(n, nil) // its tree is all there is, whoever fills it
		s.land(n, err)
		return Applied{}, err
	}
	err = s.durable(ctx) // the mark
	s.mu.Lock()
	now := s.byName[n]
	if err == nil && (now == nil || now.Store != rec.Store || now.committing) {
		err = errs.New(errs.NotFound, "snapshot %q has gone meanwhile", n.name)
	}
	old := u
	if err == nil {
		old = s.unpacked[n]
		s.unpacked[n] = u
	}
	s.mu.Unlock()
	s.drop(ctx, old) // somebody applied two at once, or this one came too late
	return u.Applied, err
}

// bring fills in u: with a layer that is known, or by unpacking it.
func (s *Service) bring(ctx context.Context, rec *record, u *unpacked, open func(context.Context) (Tar, error)) error {
	layer := rec.layer()
	if layer != "" {
		here, err := s.board(ctx, rec.name(), layer)
		if err == nil && here {
			here, err = s.pin(ctx, rec.name(), layer, u)
		}
		if err != nil || here && s.sameBlob(ctx, layer, u) {
			return err
		}
	}
	defer s.busy(rec.name())()
	tar, err := open(ctx)
	if err != nil {
		return err
	}
	defer tar.Close()
	if u.known != "" { // from another blob: it has to be read, but not unpacked
		u.Diff, u.Size, err = tar.Sum()
		return err
	}
	u.ingest, err = s.store.Ingest(ctx, tar)
	if err == nil {
		u.Diff, u.Size, err = tar.Sum()
	}
	if err != nil {
		s.drop(ctx, u)
	}
	return err
}

// sameBlob notes that the layer is there, and says whether it is known to be
// what this very blob unpacks to.
func (s *Service) sameBlob(ctx context.Context, layer snapshot.Key, u *unpacked) bool {
	info, err := s.store.Stat(ctx, layer)
	if err != nil {
		return false
	}
	size, err := strconv.ParseInt(info.Labels[snapshot.LayerTar], 10, 64)
	if err != nil || info.Labels[snapshot.LayerBlob] != u.blob.String() {
		return false
	}
	u.Diff, u.Size = digest.Digest(info.Labels[snapshot.LayerDiff]), size
	return u.Diff.Validate() == nil
}

// pin notes that the layer is there, and keeps it so until drop.
func (s *Service) pin(ctx context.Context, n name, layer snapshot.Key, u *unpacked) (here bool, err error) {
	for {
		s.mu.Lock()
		gone := s.leaving[layer]
		if gone == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	if s.holders[layer] == nil {
		s.holders[layer] = map[name]struct{}{}
	}
	s.holders[layer][n] = struct{}{}
	s.mu.Unlock()
	u.known, u.of = layer, n
	if _, err := s.store.Stat(ctx, layer); err != nil {
		s.drop(ctx, u)
		u.known = ""
		return false, nil
	}
	return true, nil
}

// drop lets go of what was unpacked.
func (s *Service) drop(ctx context.Context, u *unpacked) {
	if u == nil {
		return
	}
	s.mu.Lock()
	if u.showing != nil {
		u.dropped = true
		s.mu.Unlock()
		return
	}
	for _, key := range []snapshot.Key{u.known, u.spare} {
		s.unhold(key, u.of)
	}
	s.mu.Unlock()
	if u.ingest != nil {
		_ = u.ingest.Abort(context.WithoutCancel(ctx))
	}
	if u.spare != "" {
		s.discard(ctx, u.spare)
	}
}

// unhold has a name no longer hold a snapshot of the store that is not its own.
// mu is held.
func (s *Service) unhold(key snapshot.Key, n name) {
	delete(s.holders[key], n)
	if len(s.holders[key]) == 0 {
		delete(s.holders, key)
	}
}

// fresh finds the active snapshot that mounts show, if it is empty.
func (s *Service) fresh(ctx context.Context, mounts []snapshot.Mount) (*record, error) {
	rec := s.shown(mounts)
	if rec == nil || rec.Kind != snapshot.KindActive || rec.committing || rec.shifted() {
		return nil, errs.New(errs.Unsupported, "these are no mounts of an active snapshot")
	}
	if err := s.spread(ctx, rec.name()); err != nil {
		return nil, err
	}
	changes, err := s.store.Changes(ctx, rec.Store)
	if err != nil {
		return nil, err
	}
	if len(changes) > 0 {
		return nil, errs.New(errs.Unsupported, "something is in snapshot %q already", rec.Name)
	}
	return rec, nil
}

// shown finds the record of the snapshot that mounts show; nil if it is none
// of ours. An unpacker may have made an overlay of the tree's folder.
func (s *Service) shown(mounts []snapshot.Mount) *record {
	if s.node == nil || len(mounts) != 1 {
		return nil
	}
	source := mounts[0].Source
	if mounts[0].Type == "overlay" {
		for _, option := range mounts[0].Options {
			if strings.HasPrefix(option, "lowerdir=") {
				return nil
			}
			if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
				source = upper
			}
		}
	} else if mounts[0].Type != "bind" {
		return nil
	}
	dir, key := filepath.Split(source)
	if filepath.Clean(dir) != s.node.Dir {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for n := range s.holders[snapshot.Key(key)] {
		if rec, err := s.find(n); err == nil && rec.Store == snapshot.Key(key) {
			return rec
		}
	}
	return nil
}

// markApplied notes that more belongs to the snapshot than its tree, for the
// case that this process ends now.
func (s *Service) markApplied(n name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.find(n)
	if err != nil {
		return err
	}
	rec := *old
	rec.Applied = true
	s.link(&rec)
	s.save(&rec)
	return nil
}

// unmarkApplied notes that the snapshot is its tree and no more, if all that
// was applied is u.
func (s *Service) unmarkApplied(n name, u *unpacked) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byName[n]; old != nil && old.Applied && s.unpacked[n] == u {
		delete(s.unpacked, n)
		plain := *old
		plain.Applied = false
		s.link(&plain)
		s.save(&plain)
	}
}

// spread writes what was unpacked for a snapshot into its tree, for who wants
// to look there. If it fails, the next one who wants to look begins anew, and a
// commit is of all that was unpacked.
func (s *Service) spread(ctx context.Context, n name) error {
	rec, u, err := s.claimShowing(ctx, n)
	if u == nil || err != nil {
		return err
	}
	if err = s.writeOut(ctx, rec, u); err == nil {
		s.unmarkApplied(n, u)
	}
	s.mu.Lock()
	close(u.showing)
	u.showing = nil
	over := err == nil || u.dropped
	s.mu.Unlock()
	if over {
		s.drop(ctx, u)
	}
	return err
}

// claimShowing waits for who else writes into the tree of a snapshot. It
// returns nothing where there is nothing to be written.
func (s *Service) claimShowing(ctx context.Context, n name) (*record, *unpacked, error) {
	for {
		s.mu.Lock()
		rec, u := s.byName[n], s.unpacked[n]
		if u == nil || rec == nil {
			s.mu.Unlock()
			return nil, nil, nil
		}
		other := u.showing
		if other == nil {
			u.showing = make(chan struct{})
			s.mu.Unlock()
			return rec, u, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// awaitShown waits until nobody writes into the tree of a snapshot.
func (s *Service) awaitShown(ctx context.Context, n name) error {
	for {
		s.mu.RLock()
		var showing chan struct{}
		if u := s.unpacked[n]; u != nil {
			showing = u.showing
		}
		s.mu.RUnlock()
		if showing == nil {
			return nil
		}
		select {
		case <-showing:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// writeOut writes what was unpacked into the tree of rec.
func (s *Service) writeOut(ctx context.Context, rec *record, u *unpacked) error {
	layer, err := s.spreadable(ctx, rec, u)
	if err != nil {
		return err
	}
	mounts, err := s.trees.Mounts(ctx, rec.Store)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	var writing sync.WaitGroup
	writing.Go(func() { w.CloseWithError(s.store.Diff(ctx, layer, w)) })
	_, err = archive.Apply(ctx, mounts[0].Source, r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // an error behind the tar's end counts
	}
	_ = r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	writing.Wait()
	return err
}

// spreadable is a layer of the store with what was unpacked.
func (s *Service) spreadable(ctx context.Context, rec *record, u *unpacked) (snapshot.Key, error) {
	if key := cmp.Or(u.known, u.spare); key != "" {
		return key, nil
	}
	var parent snapshot.Key
	if info, err := s.store.Stat(ctx, rec.Store); err == nil {
		parent = info.Parent
	}
	key := newKey()
	s.mu.Lock()
	s.holders[key] = map[name]struct{}{rec.name(): {}} // or it would be swept
	s.mu.Unlock()
	if _, err := u.ingest.Commit(ctx, key, parent, nil); err != nil {
		s.mu.Lock()
		s.unhold(key, rec.name())
		s.mu.Unlock()
		return "", err
	}
	u.ingest, u.spare, u.of = nil, key, rec.name()
	return key, nil
}
