package snapshots

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/snapshot"
)

// Prepare makes a writable snapshot. It answers AlreadyExists, which spares
// containerd the download and the unpacking, if the layer that is to be
// unpacked into it is known; in the node's own door, if the namespace knows it.
func (s *Service) Prepare(ctx context.Context, r *api.PrepareSnapshotRequest) (*api.PrepareSnapshotResponse, error) {
	space, err := s.space(ctx, r.Snapshotter)
	if err != nil {
		return nil, failed("prepare snapshot", err)
	}
	mounts, err := s.prepare(ctx, &record{
		Space: space, Name: r.Key, Parent: r.Parent, Labels: r.Labels, Kind: snapshot.KindActive,
	})
	return &api.PrepareSnapshotResponse{Mounts: mounts}, failed("prepare snapshot", err)
}

func (s *Service) prepare(ctx context.Context, rec *record) ([]*types.Mount, error) {
	var exists, boarded bool
	var err error
	if s.node != nil {
		exists, boarded, err = s.await(ctx, rec)
	} else {
		exists, err = s.share(ctx, rec)
	}
	if exists {
		err = errs.New(errs.Exists, "layer %s is known", rec.layer())
	}
	if err != nil {
		return nil, err
	}
	mounts, err := s.create(ctx, rec)
	if err != nil {
		if boarded {
			s.land(rec.name(), err)
		}
		return nil, err
	}
	s.tell(ctx, rec.name(), "prepare", func(snapshotter string) proto.Message {
		return &events.SnapshotPrepare{Key: rec.Name, Parent: rec.Parent, Snapshotter: snapshotter}
	})
	return mounts, nil
}

// await waits for others who unpack the layer that is to be unpacked into the
// snapshot. exists says that it has a name in the space. Where it is only in
// the store, the client goes on, for it also wants the layer's blob; Apply then
// spares it the unpacking. boarded says that others wait for the snapshot now.
func (s *Service) await(ctx context.Context, rec *record) (exists, boarded bool, err error) {
	layer := rec.layer()
	if layer == "" || check(rec) != nil {
		return false, false, nil
	}
	below := &record{Space: rec.Space, Name: string(layer)}
	defer s.hold(below)()
	s.mu.RLock()
	_, named := s.find(below.name())
	taken := s.byName[rec.name()] != nil
	s.mu.RUnlock()
	if rec.Labels[labelRef] != "" && named == nil {
		err := s.keep(ctx, below.name()) // it is what the client goes on with
		return err == nil, false, err
	}
	if taken { // create says so
		return false, false, nil
	}
	here, err := s.board(ctx, rec.name(), layer)
	return false, err == nil && !here, err
}

// View makes a snapshot for reading.
func (s *Service) View(ctx context.Context, r *api.ViewSnapshotRequest) (*api.ViewSnapshotResponse, error) {
	space, err := s.space(ctx, r.Snapshotter)
	if err != nil {
		return nil, failed("view snapshot", err)
	}
	mounts, err := s.create(ctx, &record{
		Space: space, Name: r.Key, Parent: r.Parent, Labels: r.Labels, Kind: snapshot.KindView, Loose: wire.Lease(ctx) == "",
	})
	return &api.ViewSnapshotResponse{Mounts: mounts}, failed("view snapshot", err)
}

// create makes the snapshot that rec describes.
func (s *Service) create(ctx context.Context, rec *record) ([]*types.Mount, error) {
	if err := check(rec); err != nil {
		return nil, err
	}
	defer s.hold(rec)()
	if rec.Parent != "" { // which may have to be named first
		if _, err := s.look(ctx, rec.parent()); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
	}
	if err := s.keep(ctx, rec.name()); err != nil {
		return nil, err
	}
	parent, err := s.claim(rec)
	if err != nil {
		return nil, err
	}
	if rec.Kind == snapshot.KindView {
		_, err = s.store.View(ctx, rec.Store, parent, nil)
	} else {
		_, err = s.store.Prepare(ctx, rec.Store, parent, nil)
	}
	if err != nil {
		s.abandon(rec)
		return nil, err
	}
	describe := s.mounts
	if s.node == nil && rec.unpacking() {
		describe = s.mountsToUnpack
	}
	mounts, err := describe(ctx, rec.Store)
	if err == nil {
		_, err = s.show(ctx, rec)
	}
	if err != nil {
		s.abandon(rec)
		s.discard(ctx, rec.Store)
		return nil, err
	}
	return mounts, nil
}

// claim takes the name of rec and pins its parent, whose key in the store it
// returns.
func (s *Service) claim(rec *record) (parent snapshot.Key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec.Parent != "" {
		below, err := s.committed(rec.parent())
		if err != nil {
			return "", err
		}
		parent = below.Store
	}
	if s.byName[rec.name()] != nil {
		return "", errs.New(errs.Exists, "snapshot %q exists", rec.Name)
	}
	rec.Store, rec.making = newKey(), true
	rec.Labels = snapshot.MergeLabels(nil, rec.Labels)
	s.link(rec)
	return parent, nil
}

// committed finds a snapshot that others can stand on. mu is held.
func (s *Service) committed(parent name) (*record, error) {
	below, err := s.find(parent)
	if err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	if below.Kind != snapshot.KindCommitted {
		return nil, errs.New(errs.Invalid, "parent %q is not committed", parent.name)
	}
	return below, nil
}

// show makes a claimed name durable, and then lets everybody see it.
func (s *Service) show(ctx context.Context, claimed *record) (*record, error) {
	rec := *claimed
	rec.making = false
	rec.Created = time.Now().UTC()
	rec.Updated = rec.Created
	s.mu.Lock()
	s.save(&rec)
	s.mu.Unlock()
	if err := s.durable(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.link(&rec)
	s.mu.Unlock()
	return &rec, nil
}

// abandon gives up what claim took.
func (s *Service) abandon(rec *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlink(rec)
	s.forget(rec)
}

// discard removes a snapshot of the store that no name stands for any more.
// One that cannot go now goes with the next Cleanup.
func (s *Service) discard(ctx context.Context, key snapshot.Key) {
	err := s.wipe(context.WithoutCancel(ctx), key)
	if err != nil && errs.KindOf(err) != errs.NotFound {
		s.log.WarnContext(ctx, "snapshot waits to be removed", "key", key, "error", err)
	}
}

// wipe removes a snapshot of the store, and its tree if it is mounted.
func (s *Service) wipe(ctx context.Context, key snapshot.Key) error {
	if err := s.store.Remove(ctx, key); err != nil {
		return err
	}
	if s.trees == nil {
		return nil
	}
	return s.trees.Remove(ctx, key)
}

// share says whether the layer that labels speak of is there already, on this
// parent. If another snapshotter unpacked it, it gets a name in this one.
func (s *Service) share(ctx context.Context, rec *record) (exists bool, err error) {
	ref := rec.Labels[labelRef]
	if !chainID.MatchString(ref) {
		return false, nil
	}
	s.mu.Lock()
	alias, exists := s.alias(rec.parent(), ref)
	s.mu.Unlock()
	if alias == nil {
		return exists, nil
	}
	if _, err := s.show(ctx, alias); err != nil {
		s.abandon(alias)
		return false, err
	}
	return true, nil
}

// alias claims a further name for the layer ref, where it needs one. mu is
// held.
func (s *Service) alias(parent name, ref string) (claimed *record, exists bool) {
	l, ok := s.layerOn(parent, ref)
	if !ok {
		return nil, false
	}
	key := s.layers[l]
	for n := range s.holders[key] {
		rec := s.byName[n]
		if n.space == parent.space && !rec.making && rec.Labels[labelRef] == ref && rec.Parent == parent.name {
			return nil, true
		}
	}
	if key == "" || s.byName[name{parent.space, ref}] != nil {
		return nil, false
	}
	claimed = &record{
		Space: parent.space, Name: ref, Parent: parent.name, Kind: snapshot.KindCommitted,
		Labels: map[string]string{labelRef: ref}, Chain: ref, Store: key, making: true,
	}
	s.link(claimed)
	return claimed, true
}

// maxLabel is how long a label and its value are together, for containerd.
const maxLabel = 4096

func check(rec *record) error {
	if rec.Name == "" {
		return errs.New(errs.Invalid, "a snapshot needs a name")
	}
	for label, value := range rec.Labels {
		if len(label)+len(value) > maxLabel {
			return errs.New(errs.Invalid, "label %.64s and its value are %d bytes: at most %d may be", label, len(label)+len(value), maxLabel)
		}
	}
	return nil
}
