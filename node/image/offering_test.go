package image_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"

	"berth/base/errs"
	"berth/node/image"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
)

// offering is a fake store that offers all that this room can use.
type offering struct {
	*fakesnapshot.Store

	mu      sync.Mutex
	tars    map[snapshot.Key][]byte
	settled []snapshot.Key
	synced  int
}

var (
	_ image.Exact   = (*offering)(nil)
	_ image.Settler = (*offering)(nil)
)

// offers gives the node such a store.
func offers(n *node) {
	n.store = &offering{Store: n.snapshots, tars: map[snapshot.Key][]byte{}}
}

func (n *node) offering() *offering { return n.store.(*offering) }

// follows sets the node's policy.
func follows(p image.Policy) func(*node) { return func(n *node) { n.policy = p } }

func (o *offering) Ingest(ctx context.Context, layer io.Reader) (snapshot.Ingest, error) {
	var tar bytes.Buffer
	in, err := o.Store.Ingest(ctx, io.TeeReader(layer, &tar))
	if err != nil {
		return nil, err
	}
	return &offered{in, o, tar.Bytes()}, nil
}

type offered struct {
	snapshot.Ingest
	store *offering
	tar   []byte
}

func (i *offered) Commit(ctx context.Context, name, parent snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	made, err := i.Ingest.Commit(ctx, name, parent, labels)
	if err == nil {
		i.store.mu.Lock()
		defer i.store.mu.Unlock()
		i.store.tars[name] = i.tar
	}
	return made, err
}

func (o *offering) Tar(_ context.Context, key snapshot.Key, w io.Writer) error {
	o.mu.Lock()
	tar, ok := o.tars[key]
	o.mu.Unlock()
	if !ok {
		return errs.New(errs.NotFound, "no snapshot %s", key)
	}
	_, err := w.Write(tar)
	return err
}

func (o *offering) Settle(_ context.Context, key snapshot.Key) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settled = append(o.settled, key)
	return nil
}

func (o *offering) Sync(ctx context.Context) error {
	o.mu.Lock()
	o.synced++
	o.mu.Unlock()
	return o.Store.Sync(ctx)
}

// settledTop says whether the chain of key was settled.
func (o *offering) settledTop(key snapshot.Key) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Contains(o.settled, key)
}
