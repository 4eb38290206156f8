package snapshots

import (
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
	of     name         // that holds known
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
	if u.ingest != nil {
		_ = u.ingest.Abort(context.WithoutCancel(ctx))
	}
	if u.known != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.holders[u.known], u.of)
		if len(s.holders[u.known]) == 0 {
			delete(s.holders, u.known)
		}
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

// spread writes what was unpacked for a snapshot into its tree, for who wants
// to look there.
func (s *Service) spread(ctx context.Context, n name) error {
	s.mu.Lock()
	rec, u := s.byName[n], s.unpacked[n]
	delete(s.unpacked, n)
	s.mu.Unlock()
	if u == nil || rec == nil {
		return nil
	}
	layer, err := s.spreadable(ctx, rec, u)
	if err != nil {
		return err
	}
	if u.known == "" {
		defer s.discard(ctx, layer)
	} else {
		defer s.drop(ctx, u)
	}
	mounts, err := s.trees.Mounts(ctx, rec.Store)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	var writing sync.WaitGroup
	writing.Go(func() { w.CloseWithError(s.store.Diff(ctx, layer, w)) })
	_, err = archive.Apply(ctx, mounts[0].Source, r)
	_ = r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	writing.Wait()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.byName[n]; now != nil && now.Store == rec.Store {
		plain := *now
		plain.Applied = false
		s.link(&plain)
		s.save(&plain)
	}
	return nil
}

// spreadable is a layer of the store with what was unpacked.
func (s *Service) spreadable(ctx context.Context, rec *record, u *unpacked) (snapshot.Key, error) {
	if u.known != "" {
		return u.known, nil
	}
	var parent snapshot.Key
	if info, err := s.store.Stat(ctx, rec.Store); err == nil {
		parent = info.Parent
	}
	key := newKey()
	if _, err := u.ingest.Commit(ctx, key, parent, nil); err != nil {
		s.drop(ctx, u)
		return "", err
	}
	return key, nil
}
