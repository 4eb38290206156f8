package snapshots

import (
	"context"
	"strings"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Remove forgets a name, and its snapshot if it was the last one.
func (s *Service) Remove(ctx context.Context, r *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	space, err := s.space(ctx, r.Snapshotter)
	if err == nil {
		err = s.remove(ctx, name{space, r.Key})
	}
	return &emptypb.Empty{}, failed("remove snapshot", err)
}

func (s *Service) remove(ctx context.Context, n name) error {
	if err := s.awaitShown(ctx, n); err != nil {
		return err
	}
	rec, last, err := s.release(n)
	if err != nil {
		return err
	}
	s.land(n, errs.New(errs.Canceled, "snapshot %q was removed", n.name))
	s.mu.Lock()
	u := s.unpacked[n]
	delete(s.unpacked, n)
	s.mu.Unlock()
	s.drop(ctx, u)
	s.tell(ctx, n, "remove", func(snapshotter string) proto.Message {
		return &events.SnapshotRemove{Key: n.name, Snapshotter: snapshotter}
	})
	switch {
	case !last:
	case strings.HasPrefix(string(rec.Store), keyPrefix):
		s.discard(ctx, rec.Store)
	case s.node != nil: // an image of the node's may stand on it
		s.node.Layers.FreedLayers(ctx)
	}
	return nil
}

// release takes a name away from its snapshot.
func (s *Service) release(n name) (rec *record, last bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err = s.find(n)
	switch {
	case err != nil:
		return nil, false, err
	case s.children[n] > 0:
		return nil, false, errs.New(errs.Conflict, "cannot remove snapshot %q: it has %d children", n.name, s.children[n])
	case rec.committing:
		return nil, false, errs.New(errs.Conflict, "cannot remove snapshot %q: it is being committed", n.name)
	}
	last = s.unlink(rec)
	s.forget(rec)
	return rec, last, nil
}

// Cleanup removes what could not be removed before. The store frees disk by
// itself, in the background.
func (s *Service) Cleanup(ctx context.Context, r *api.CleanupRequest) (*emptypb.Empty, error) {
	_, err := s.space(ctx, r.Snapshotter)
	if err == nil {
		err = s.sweep(ctx)
	}
	return &emptypb.Empty{}, failed("clean up snapshots", err)
}

// sweep removes the snapshots made here that no name stands for, children
// before their parents.
func (s *Service) sweep(ctx context.Context) error {
	for {
		var left []snapshot.Key
		err := s.store.Walk(ctx, func(info snapshot.Info) error {
			if strings.HasPrefix(string(info.Key), keyPrefix) && !s.held(info.Key) {
				left = append(left, info.Key)
			}
			return nil
		})
		if err != nil {
			return err
		}
		removed := 0
		for _, key := range left {
			switch err := s.wipe(ctx, key); errs.KindOf(err) {
			case "":
				removed++
			case errs.Conflict, errs.NotFound: // a child goes first, or it is gone
			default:
				return err
			}
		}
		if removed == 0 {
			return nil
		}
	}
}

func (s *Service) held(key snapshot.Key) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.holders[key]) > 0
}
