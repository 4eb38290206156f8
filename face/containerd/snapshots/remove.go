package snapshots

import (
	"context"
	"strings"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Remove forgets a name, and its snapshot if it was the last one.
func (s *Service) Remove(ctx context.Context, r *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	rec, last, err := s.release(name{r.Snapshotter, r.Key})
	if err != nil {
		return nil, failed("remove snapshot", err)
	}
	if last {
		s.discard(ctx, rec.Store)
	}
	return &emptypb.Empty{}, nil
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
func (s *Service) Cleanup(ctx context.Context, _ *api.CleanupRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, failed("clean up snapshots", s.sweep(ctx))
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
			switch err := s.drop(ctx, key); errs.KindOf(err) {
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
