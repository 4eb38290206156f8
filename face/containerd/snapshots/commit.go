package snapshots

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Commit makes an active snapshot the layer r.Name. Its labels are the
// request's alone. One that was prepared on nothing may be put on a parent now.
func (s *Service) Commit(ctx context.Context, r *api.CommitSnapshotRequest) (*emptypb.Empty, error) {
	err := s.commit(ctx, name{r.Snapshotter, r.Key}, &record{
		Space: r.Snapshotter, Name: r.Name, Parent: r.Parent, Labels: r.Labels, Kind: snapshot.KindCommitted,
	})
	if err == nil && s.sync {
		err = s.store.Sync(ctx)
	}
	return &emptypb.Empty{}, failed("commit snapshot", err)
}

func (s *Service) commit(ctx context.Context, active name, rec *record) error {
	if err := check(rec); err != nil {
		return err
	}
	c, err := s.claimCommit(active, rec)
	if err != nil {
		return err
	}
	if s.trees != nil { // nobody is to write to a layer
		if err := s.trees.Remove(ctx, c.from.Store); err != nil {
			s.giveUp(c)
			return err
		}
	}
	if c.moved && !c.known {
		if err := s.rebase(ctx, c); err != nil {
			s.giveUp(c)
			return err
		}
	}
	if err := s.carryOut(ctx, c); err != nil {
		s.giveUp(c)
		if c.moved && !c.known {
			s.discard(ctx, rec.Store)
		}
		return err
	}
	s.finish(c)
	if c.known || c.moved {
		s.discard(ctx, c.from.Store)
	}
	return nil
}

// carryOut makes the commit durable first and then does it: after a crash in
// between, the record says what is still to be done.
func (s *Service) carryOut(ctx context.Context, c *commitment) error {
	c.to.Created = time.Now().UTC()
	c.to.Updated = c.to.Created
	if !c.known && !c.moved {
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
}

// claimCommit takes the name of rec, and holds the active snapshot so that
// nobody else commits or removes it.
func (s *Service) claimCommit(active name, rec *record) (*commitment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
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
	c := &commitment{to: rec, moved: rec.Parent != from.Parent && rec.Parent != ""}
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
	rec.Chain = chainOf(from, rec)
	if l, ok := s.layerOf(rec); ok {
		if key := s.layers[l]; key != "" {
			rec.Store, c.known = key, true
		}
	}
	s.link(rec)
	held := *from
	held.committing = true
	s.link(&held)
	c.from = &held
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
	s.unlink(c.to)
	s.link(&active)
	s.forget(c.to)
	s.save(&active)
}

// rebase makes a layer out of what an active snapshot on nothing holds, on a
// parent. What would delete something below it keeps doing so.
func (s *Service) rebase(ctx context.Context, c *commitment) error {
	r, w := io.Pipe()
	var reading sync.WaitGroup
	reading.Go(func() { w.CloseWithError(s.store.Diff(ctx, c.from.Store, w)) })
	in, err := s.store.Ingest(ctx, r)
	_ = r.CloseWithError(err)
	reading.Wait()
	if err != nil {
		return fmt.Errorf("put on a parent: %w", err)
	}
	_, err = in.Commit(ctx, c.to.Store, c.parent, nil)
	if err != nil {
		_ = in.Abort(context.WithoutCancel(ctx))
		return fmt.Errorf("put on a parent: %w", err)
	}
	return nil
}
