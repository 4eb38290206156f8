package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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
	refuse  map[snapshot.Key]error // what Tar answers, if set
	settled []snapshot.Key
	synced  int
	things  map[string]snapshot.Checked // by place
	healed  []snapshot.Key
	scrubs  []string // from where each scrub began
}

var (
	_ image.Exact    = (*offering)(nil)
	_ image.Settler  = (*offering)(nil)
	_ image.Scrubber = (*offering)(nil)
)

// offers gives the node such a store.
func offers(n *node) {
	n.store = &offering{Store: n.snapshots, tars: map[snapshot.Key][]byte{}, things: map[string]snapshot.Checked{}}
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
	refused := o.refuse[key]
	o.mu.Unlock()
	if refused != nil {
		return refused
	}
	if !ok {
		return errs.New(errs.NotFound, "no snapshot %s", key)
	}
	_, err := w.Write(tar)
	return err
}

// keeps gives the store count things of a layer that a scrub looks at.
func (o *offering) keeps(key snapshot.Key, count int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := range count {
		place := fmt.Sprintf("%s/%03d", key, n)
		o.things[place] = snapshot.Checked{Part: snapshot.PartObject, Name: place, Size: 1000, Place: place, Keys: []snapshot.Key{key}}
	}
}

// breaks damages one of the things of a layer.
func (o *offering) breaks(key snapshot.Key, which int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	place := fmt.Sprintf("%s/%03d", key, which)
	thing := o.things[place]
	thing.Damage = "a bit flipped"
	o.things[place] = thing
}

func (o *offering) damage() (count int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, thing := range o.things {
		if thing.Damage != "" {
			count++
		}
	}
	return count
}

func (o *offering) Scrub(ctx context.Context, after string, pace func(context.Context, int64) error, fn func(snapshot.Checked) error) error {
	o.mu.Lock()
	o.scrubs = append(o.scrubs, after)
	places := slices.Sorted(maps.Keys(o.things))
	o.mu.Unlock()
	for _, place := range places {
		if place <= after {
			continue
		}
		o.mu.Lock()
		thing := o.things[place]
		o.mu.Unlock()
		if err := pace(ctx, thing.Size); err != nil {
			return err
		}
		if err := fn(thing); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (o *offering) Heal(_ context.Context, key snapshot.Key, tar io.Reader) error {
	got, err := io.ReadAll(tar)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	want, ok := o.tars[key]
	switch {
	case !ok:
		return errs.New(errs.NotFound, "no snapshot %s", key)
	case !bytes.Equal(got, want):
		return errs.New(errs.Invalid, "not the tar of %s", key)
	}
	o.healed = append(o.healed, key)
	for place, thing := range o.things {
		if slices.Contains(thing.Keys, key) {
			thing.Damage = ""
			o.things[place] = thing
		}
	}
	return nil
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

// notesOf lists what was told of an action.
func (n *node) notesOf(action string) (found []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, note := range n.notes {
		if strings.HasPrefix(note, action+" ") {
			found = append(found, note)
		}
	}
	return found
}
