package snapshots

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Commit makes an active snapshot the layer r.Name. Its labels are the
// request's alone. One that was prepared on nothing may be put on a parent now.
func (s *Service) Commit(ctx context.Context, r *api.CommitSnapshotRequest) (*emptypb.Empty, error) {
	space, err := s.space(ctx, r.Snapshotter)
	if err == nil {
		err = s.commit(ctx, name{space, r.Key}, &record{
			Space: space, Name: r.Name, Parent: r.Parent, Labels: r.Labels, Kind: snapshot.KindCommitted,
		})
	}
	if err == nil && s.sync {
		err = s.store.Sync(ctx)
	}
	return &emptypb.Empty{}, failed("commit snapshot", err)
}

func (s *Service) commit(ctx context.Context, active name, rec *record) error {
	if err := check(rec); err != nil {
		return err
	}
	defer s.hold(rec)()
	if rec.Parent != "" { // which may have to be named first
		if _, err := s.look(ctx, rec.parent()); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	if err := s.keep(ctx, rec.name()); err != nil {
		return err
	}
	c, err := s.claimCommit(ctx, active, rec)
	if err != nil {
		return err
	}
	if s.trees != nil { // nobody is to write to a layer
		if err := s.trees.Remove(ctx, c.from.Store); err != nil {
			s.giveUp(c)
			return err
		}
	}
	if c.unpacked != nil {
		if err := s.commitUnpacked(ctx, c); err != nil {
			s.giveUp(c)
			return err
		}
	} else if c.moved && !c.known {
		if err := s.rebase(ctx, c); err != nil {
			s.giveUp(c)
			return err
		}
	}
	if err := s.carryOut(ctx, c); err != nil {
		s.giveUp(c)
		if c.replaced() && !c.known && strings.HasPrefix(string(c.to.Store), keyPrefix) {
			s.discard(ctx, c.to.Store)
		}
		return err
	}
	s.finish(c)
	s.land(active, nil)
	s.tell(ctx, rec.name(), "commit", func(snapshotter string) proto.Message {
		return &events.SnapshotCommit{Key: active.name, Name: rec.Name, Snapshotter: snapshotter}
	})
	if c.replaced() {
		s.discard(ctx, c.from.Store)
	}
	return nil
}

// carryOut makes the commit durable first and then does it: after a crash in
// between, the record says what is still to be done.
func (s *Service) carryOut(ctx context.Context, c *commitment) error {
	c.to.Created = time.Now().UTC()
	c.to.Updated = c.to.Created
	if !c.replaced() {
		c.to.From = c.from.Store
	}
	s.mu.Lock()
	s.forget(c.from)
	s.save(c.to)
	s.mu.Unlock()
	if err := s.durable(ctx); err != nil || c.to.From == "" {
		return err
	}
	_, err := s.store.Commit(context.WithoutCancel(ctx), c.to.Store, c.to.From, nil)
	return err
}

// commitment is a commit under way: from becomes to, on parent.
type commitment struct {
	from, to *record
	parent   snapshot.Key
	known    bool // to is a layer that is there already
	moved    bool // from was prepared on nothing, to stands on parent
	unpacked *unpacked
}

// replaced says that what was active is not what is committed.
func (c *commitment) replaced() bool { return c.known || c.moved || c.unpacked != nil }

// claimCommit takes the name of rec, and holds the active snapshot so that
// nobody else commits or removes it.
func (s *Service) claimCommit(ctx context.Context, active name, rec *record) (*commitment, error) {
	for {
		c, gone, err := s.tryCommit(active, rec)
		if gone == nil {
			return c, err
		}
		select {
		case <-gone:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryCommit is claimCommit unless the layer is being removed, or what was
// unpacked is being shown, just now.
func (s *Service) tryCommit(active name, rec *record) (_ *commitment, gone <-chan struct{}, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.checkCommit(active, rec)
	if err != nil {
		return nil, nil, err
	}
	if u := c.unpacked; u != nil {
		if u.showing != nil { // then all of it is in the tree
			return nil, u.showing, nil
		}
		rec.Store = u.key(c.parent, rec)
		if leaving := s.leaving[rec.Store]; leaving != nil {
			return nil, leaving, nil
		}
		delete(s.unpacked, active)
	}
	s.link(rec)
	held := *c.from
	held.committing = true
	s.link(&held)
	c.from = &held
	return c, nil, nil
}

// checkCommit says what a commit amounts to. mu is held.
func (s *Service) checkCommit(active name, rec *record) (*commitment, error) {
	from, err := s.find(active)
	switch {
	case err != nil:
		return nil, err
	case s.byName[rec.name()] != nil:
		return nil, errs.New(errs.Exists, "snapshot %q exists", rec.Name)
	case from.Kind != snapshot.KindActive || from.committing:
		return nil, errs.New(errs.Conflict, "snapshot %q is not active", active.name)
	case rec.Parent != "" && from.Parent != "" && rec.Parent != from.Parent:
		return nil, errs.New(errs.Invalid, "snapshot %q stands on %q and cannot be put on %q", active.name, from.Parent, rec.Parent)
	}
	c := &commitment{from: from, to: rec, moved: rec.Parent != from.Parent && rec.Parent != "", unpacked: s.unpacked[active]}
	if rec.Parent == "" {
		rec.Parent = from.Parent
	}
	if rec.Parent != "" {
		below, err := s.committed(rec.parent())
		if err != nil {
			return nil, err
		}
		c.parent = below.Store
	}
	rec.Store, rec.making = newKey(), true
	rec.Labels = snapshot.MergeLabels(nil, rec.Labels)
	if s.node != nil {
		return c, nil
	}
	rec.Chain = chainOf(from, rec)
	if l, ok := s.layerOf(rec); ok {
		if key := s.layers[l]; key != "" {
			rec.Store, c.known = key, true
		}
	}
	return c, nil
}

// finish shows the layer under its name instead of the active snapshot.
func (s *Service) finish(c *commitment) {
	layer := *c.to
	layer.making = false
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlink(c.from)
	s.link(&layer)
}

// giveUp leaves things as they were before claimCommit.
func (s *Service) giveUp(c *commitment) {
	active := *c.from
	active.committing = false
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.unpacked != nil {
		s.unpacked[active.name()] = c.unpacked
	}
	s.unlink(c.to)
	s.link(&active)
	s.forget(c.to)
	s.save(&active)
}

// key is where the store keeps what was unpacked once it is committed: under
// its chain ID, if the client calls it so and it is true.
func (u *unpacked) key(parent snapshot.Key, rec *record) snapshot.Key {
	chain := snapshot.Chain(parent, u.Diff.String())
	if u.spare == "" && (parent == "" || chainID.MatchString(string(parent))) && rec.Name == string(chain) && !rec.shifted() {
		return chain
	}
	return rec.Store
}

// commitUnpacked makes a layer of what Apply has brought.
func (s *Service) commitUnpacked(ctx context.Context, c *commitment) error {
	u := c.unpacked
	if _, err := s.store.Stat(ctx, c.to.Store); err == nil {
		s.drop(ctx, u)
		return nil
	}
	if key := cmp.Or(u.known, u.spare); key != "" { // the client calls it otherwise: it gets one of its own
		err := s.copyLayer(ctx, key, c.to.Store, c.parent)
		if err == nil {
			s.drop(ctx, u)
		}
		return err
	}
	var labels map[string]string
	if !strings.HasPrefix(string(c.to.Store), keyPrefix) {
		labels = map[string]string{
			snapshot.LayerSize: strconv.FormatInt(u.ingest.Size(), 10), snapshot.LayerTar: strconv.FormatInt(u.Size, 10),
			snapshot.LayerDiff: u.Diff.String(), snapshot.LayerBlob: u.blob.String(),
		}
	}
	_, err := u.ingest.Commit(ctx, c.to.Store, c.parent, labels)
	if errs.KindOf(err) == errs.Exists {
		err = nil
	}
	return err
}

// rebase makes a layer out of what an active snapshot on nothing holds, on a
// parent. What would delete something below it keeps doing so.
func (s *Service) rebase(ctx context.Context, c *commitment) error {
	return s.copyLayer(ctx, c.from.Store, c.to.Store, c.parent)
}

// copyLayer makes the layer to, on parent, of what from changes.
func (s *Service) copyLayer(ctx context.Context, from, to, parent snapshot.Key) error {
	r, w := io.Pipe()
	var reading sync.WaitGroup
	reading.Go(func() { w.CloseWithError(s.store.Diff(ctx, from, w)) })
	in, err := s.store.Ingest(ctx, r)
	_ = r.CloseWithError(err)
	reading.Wait()
	if err != nil {
		return fmt.Errorf("put on a parent: %w", err)
	}
	_, err = in.Commit(ctx, to, parent, nil)
	if err != nil {
		_ = in.Abort(context.WithoutCancel(ctx))
		return fmt.Errorf("put on a parent: %w", err)
	}
	return nil
}
