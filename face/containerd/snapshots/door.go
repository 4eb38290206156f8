package snapshots

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/lease"
	"berth/node/snapshot"
)

// failed makes err an answer.
func failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	return wire.Error(fmt.Errorf("%s: %w", doing, err))
}

// space is where the names of a request live: a snapshotter's, and in the
// node's own door a namespace's.
func (s *Service) space(ctx context.Context, snapshotter string) (string, error) {
	if s.node == nil {
		return snapshotter, nil
	}
	namespace, err := wire.Namespace(ctx)
	switch {
	case err != nil:
		return "", err
	case snapshotter == "":
		return "", errs.New(errs.Invalid, "snapshotter argument missing")
	case !slices.Contains(s.node.Names, snapshotter):
		return "", errs.New(errs.Invalid, "snapshotter not loaded: %.80s; there are %s", snapshotter, strings.Join(s.node.Names, ", "))
	}
	return namespace + "/" + snapshotter, nil
}

// resource is a name as the collector knows it. Spaces that are no namespace's
// have none.
func (n name) resource() (namespace string, r lease.Resource) {
	namespace, snapshotter, _ := strings.Cut(n.space, "/")
	return namespace, lease.Resource{Kind: lease.Snapshots(snapshotter), ID: n.name}
}

// hold keeps names from being collected while something that refers to them
// is written down.
func (s *Service) hold(rec *record) (release func()) {
	if s.node == nil {
		return func() {}
	}
	namespace, own := rec.name().resource()
	all := append(lease.References(rec.Labels), own)
	if rec.Parent != "" {
		_, parent := rec.parent().resource()
		all = append(all, parent)
	}
	return s.node.Leases.Hold(namespace, all...)
}

// keep puts a name into the request's lease, if it has one.
func (s *Service) keep(ctx context.Context, n name) error {
	id := wire.Lease(ctx)
	if s.node == nil || id == "" {
		return nil
	}
	namespace, r := n.resource()
	return s.node.Leases.Add(ctx, namespace, id, r)
}

// tell publishes what happened to a name.
func (s *Service) tell(ctx context.Context, n name, topic string, event func(snapshotter string) proto.Message) {
	if s.node == nil || s.node.Events == nil {
		return
	}
	namespace, snapshotter, _ := strings.Cut(n.space, "/")
	s.node.Events.Publish(ctx, namespace, "/snapshot/"+topic, event(snapshotter))
}

// look returns the record of a name. In the node's own door the chain ID of a
// layer that is in the store is a name wherever somebody asks for it.
func (s *Service) look(ctx context.Context, n name) (*record, error) {
	s.mu.RLock()
	rec, err := s.find(n)
	s.mu.RUnlock()
	if err == nil || s.node == nil || !chainID.MatchString(n.name) {
		return rec, err
	}
	if found, summonErr := s.summon(ctx, n); found != nil || summonErr != nil {
		return found, summonErr
	}
	return nil, err
}

// summon gives a layer of the store, and those that it stands on, names in a
// space. It returns nil where there is no such layer.
func (s *Service) summon(ctx context.Context, n name) (*record, error) {
	var made []*record
	give := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, rec := range made {
			s.unlink(rec)
		}
	}
	for at := n; at.name != ""; at = made[len(made)-1].parent() {
		s.mu.RLock()
		there := s.byName[at]
		s.mu.RUnlock()
		if there != nil && len(made) > 0 && there.Kind == snapshot.KindCommitted {
			break // and so are those below
		}
		rec, err := s.claimLayer(ctx, at)
		if rec == nil || err != nil {
			give()
			return nil, err
		}
		made = append(made, rec)
	}
	var first *record
	for _, rec := range slices.Backward(made) {
		if err := s.keep(ctx, rec.name()); err != nil {
			give()
			return nil, err
		}
		var err error
		if first, err = s.show(ctx, rec); err != nil {
			give()
			return nil, err
		}
	}
	return first, nil
}

// claimLayer takes a name for the layer of the store that it is the chain ID
// of; nil where there is none, or the name is taken.
func (s *Service) claimLayer(ctx context.Context, n name) (*record, error) {
	if !chainID.MatchString(n.name) {
		return nil, nil
	}
	key := snapshot.Key(n.name)
	rec := &record{Space: n.space, Name: n.name, Kind: snapshot.KindCommitted, Store: key, making: true}
	if err := s.claimKey(ctx, rec); err != nil || rec.Store == "" {
		return nil, err
	}
	info, err := s.store.Stat(ctx, key)
	isLayer := err == nil && info.Kind == snapshot.KindCommitted && (info.Parent == "" || chainID.MatchString(string(info.Parent)))
	if !isLayer {
		s.mu.Lock()
		s.unlink(rec)
		s.mu.Unlock()
		if errs.KindOf(err) == errs.NotFound {
			err = nil
		}
		return nil, err
	}
	claimed := *rec
	claimed.Parent = string(info.Parent)
	s.mu.Lock()
	s.link(&claimed)
	s.mu.Unlock()
	return &claimed, nil
}

// claimKey takes the name of rec unless it is taken, which it says by an empty
// Store, once nobody removes its layer any more.
func (s *Service) claimKey(ctx context.Context, rec *record) error {
	for {
		s.mu.Lock()
		gone := s.leaving[rec.Store]
		if gone == nil {
			defer s.mu.Unlock()
			if s.byName[rec.name()] != nil {
				rec.Store = ""
				return nil
			}
			s.link(rec)
			return nil
		}
		s.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// LetGo has a layer of the store removed, unless a name stands for it. No name
// comes to stand for it meanwhile.
func (s *Service) LetGo(key snapshot.Key, remove func() error) error {
	s.mu.Lock()
	if len(s.holders[key]) > 0 || s.leaving[key] != nil {
		s.mu.Unlock()
		return nil
	}
	gone := make(chan struct{})
	s.leaving[key] = gone
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.leaving, key)
		s.mu.Unlock()
		close(gone)
	}()
	return remove()
}

// Layer is the store's key of a snapshot that a client named. The request's
// lease, if it has one, holds the name.
func (s *Service) Layer(ctx context.Context, namespace, snapshotter, key string) (snapshot.Key, error) {
	n := name{namespace + "/" + snapshotter, key}
	defer s.hold(&record{Space: n.space, Name: n.name})()
	rec, err := s.look(ctx, n)
	if err == nil {
		err = s.keep(ctx, n)
	}
	if err != nil {
		return "", err
	}
	return rec.Store, nil
}
