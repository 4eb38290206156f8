package snapshots

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/filters"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Stat describes a snapshot.
func (s *Service) Stat(ctx context.Context, r *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	rec, err := s.requested(ctx, r.Snapshotter, r.Key)
	if err != nil {
		return nil, failed("stat snapshot", err)
	}
	return &api.StatSnapshotResponse{Info: infoOf(rec)}, nil
}

// Update changes labels: those that the mask names, or all.
func (s *Service) Update(ctx context.Context, r *api.UpdateSnapshotRequest) (*api.UpdateSnapshotResponse, error) {
	rec, err := s.requested(ctx, r.Snapshotter, r.GetInfo().GetName())
	if err == nil {
		defer s.hold(&record{Space: rec.Space, Name: rec.Name, Labels: r.GetInfo().GetLabels()})()
		rec, err = s.update(rec.name(), r.GetInfo().GetLabels(), r.GetUpdateMask().GetPaths())
	}
	if err == nil {
		err = s.durable(ctx)
	}
	if err != nil {
		return nil, failed("update snapshot", err)
	}
	return &api.UpdateSnapshotResponse{Info: infoOf(rec)}, nil
}

func (s *Service) update(n name, labels map[string]string, paths []string) (*record, error) {
	all := len(paths) == 0
	var only []string
	for _, path := range paths {
		label, one := strings.CutPrefix(path, "labels.")
		switch {
		case one:
			only = append(only, label)
		case path == "labels":
			all = true
		default:
			return nil, errs.New(errs.Invalid, "field %q of snapshot %q cannot be changed", path, n.name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.find(n)
	if err != nil {
		return nil, err
	}
	if old.committing {
		return nil, errs.New(errs.Conflict, "snapshot %q is being committed", n.name)
	}
	rec := *old
	rec.Labels, rec.Updated = merge(old.Labels, labels, all, only), time.Now().UTC()
	if err := check(&rec); err != nil {
		return nil, err
	}
	s.link(&rec)
	s.save(&rec)
	return &rec, nil
}

// merge lays labels over old, those of the names only or all.
func merge(old, labels map[string]string, all bool, only []string) map[string]string {
	if all {
		return snapshot.MergeLabels(nil, labels)
	}
	changed := make(map[string]string, len(only))
	for _, label := range only {
		changed[label] = labels[label]
	}
	return snapshot.MergeLabels(old, changed)
}

// requested is the record of a name in a request.
func (s *Service) requested(ctx context.Context, snapshotter, key string) (*record, error) {
	space, err := s.space(ctx, snapshotter)
	if err != nil {
		return nil, err
	}
	return s.look(ctx, name{space, key})
}

// Usage says what a snapshot takes by itself.
func (s *Service) Usage(ctx context.Context, r *api.UsageRequest) (*api.UsageResponse, error) {
	rec, err := s.requested(ctx, r.Snapshotter, r.Key)
	if err != nil {
		return nil, failed("usage of snapshot", err)
	}
	usage, err := s.store.Usage(ctx, rec.Store)
	return &api.UsageResponse{Size: usage.Size, Inodes: usage.Inodes}, failed("usage of snapshot", err)
}

// listed is how many snapshots one message of a list holds.
const listed = 100

// List sends the snapshots that pass one of the filters, in the order of
// names.
func (s *Service) List(r *api.ListSnapshotsRequest, stream api.Snapshots_ListServer) error {
	filter, err := filters.ParseAll(r.Filters...)
	if err != nil {
		return failed("list snapshots", errs.New(errs.Invalid, "%w", err))
	}
	space, err := s.space(stream.Context(), r.Snapshotter)
	if err != nil {
		return failed("list snapshots", err)
	}
	recs := s.in(space)
	recs = slices.DeleteFunc(recs, func(rec *record) bool { return !filter.Match(rec) })
	for block := range slices.Chunk(recs, listed) {
		message := &api.ListSnapshotsResponse{}
		for _, rec := range block {
			message.Info = append(message.Info, infoOf(rec))
		}
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) in(space string) []*record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var recs []*record
	for n, rec := range s.byName {
		if n.space == space && !rec.making {
			recs = append(recs, rec)
		}
	}
	slices.SortFunc(recs, func(a, b *record) int { return cmp.Compare(a.Name, b.Name) })
	return recs
}

// Field is what containerd's filters ask for.
func (r *record) Field(path []string) (value string, present bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "kind":
		return string(r.Kind), true
	case "name":
		return r.Name, true
	case "parent":
		return r.Parent, true
	case "labels":
		value, present = r.Labels[strings.Join(path[1:], ".")]
		return value, present
	}
	return "", false
}

func infoOf(r *record) *api.Info {
	kinds := map[snapshot.Kind]api.Kind{
		snapshot.KindActive: api.Kind_ACTIVE, snapshot.KindView: api.Kind_VIEW, snapshot.KindCommitted: api.Kind_COMMITTED,
	}
	return &api.Info{
		Name: r.Name, Parent: r.Parent, Kind: kinds[r.Kind], Labels: r.Labels,
		CreatedAt: timestamppb.New(r.Created), UpdatedAt: timestamppb.New(r.Updated),
	}
}
