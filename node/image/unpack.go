package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"berth/base/errs"
	"berth/base/span"
	"berth/node/snapshot"
	"berth/spec"
)

// tarStream is a layer's tar on its way in. Finish reads what is left behind
// the tar; Close returns when its blob is safe.
type tarStream interface {
	io.Reader
	Finish() error
	Close() error
}

// opener opens the tar of layer n.
type opener func(ctx context.Context, n int) (tarStream, error)

// unpacking is the layers of one image on their way to snapshots.
type unpacking struct {
	set    *Set
	layers []layer
	keys   []snapshot.Key
	open   opener
	report func(spec.Progress)
	// blobs says that a blob is wanted even where its layer is unpacked
	// already: a push must find it.
	blobs bool
	slots *semaphore.Weighted
	// done[n] is closed when layer n is a snapshot.
	done []chan struct{}
}

// unpack makes snapshots of the layers of u and returns their unpacked size.
// Layers that are unpacked already cost nothing, those whose blob is here no
// download. The others are fetched and unpacked side by side, the biggest
// first, and committed from the bottom up. A layer that another pull is at is
// left to it.
func (s *Set) unpack(ctx context.Context, u unpacking) (int64, error) {
	u.set, u.keys = s, chain(u.layers)
	u.slots, u.done = semaphore.NewWeighted(int64(s.Parallel)), make([]chan struct{}, len(u.layers))
	for n := range u.layers {
		u.done[n] = make(chan struct{})
	}
	if err := u.run(ctx); err != nil {
		return 0, err
	}
	var size int64
	for _, key := range u.keys {
		info, err := s.Snapshots.Stat(ctx, key)
		if err != nil {
			return 0, err
		}
		n, _ := strconv.ParseInt(info.Labels[layerLabel], 10, 64)
		size += n
	}
	return size, nil
}

func (u *unpacking) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	known := u.known(ctx)
	order := make([]int, len(u.layers))
	for n := range order {
		order[n] = n
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(u.layers[b].Size, u.layers[a].Size) })
	for _, n := range order {
		if n < known {
			close(u.done[n])
			group.Go(func() error { return u.mend(ctx, n) })
			continue
		}
		flight, first := u.set.flights.take(u.keys[n])
		if !first {
			group.Go(func() error { return u.follow(ctx, n, flight) })
			continue
		}
		// Slots are given in this order. Only who reads a stream holds one, so
		// none waits for another.
		if err := u.slots.Acquire(ctx, 1); err != nil {
			u.set.flights.land(u.keys[n], flight, err)
			break
		}
		group.Go(func() error { return u.lead(ctx, n, flight) })
	}
	return group.Wait()
}

// known counts the layers, from the bottom, that are snapshots already.
func (u *unpacking) known(ctx context.Context) int {
	for n := len(u.keys); n > 0; n-- {
		if _, err := u.set.Snapshots.Stat(ctx, u.keys[n-1]); err == nil {
			return n
		}
	}
	return 0
}

// keepBlob fetches the blob of a layer that was unpacked from another one, if
// it is wanted.
func (u *unpacking) keepBlob(ctx context.Context, n int) error {
	d := u.layers[n].Digest
	if !u.blobs || u.set.Blobs.Has(d) {
		u.report(spec.Progress{Phase: spec.Unpacking, Item: d.String(), Status: "exists"})
		return nil
	}
	if err := u.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer u.slots.Release(1)
	st, err := u.open(ctx, n)
	if err != nil {
		return err
	}
	return errors.Join(st.Finish(), st.Close())
}

// follow waits for another pull's layer, and takes over where that fails.
func (u *unpacking) follow(ctx context.Context, n int, other *flight) error {
	u.report(spec.Progress{Phase: spec.Unpacking, Item: u.layers[n].Digest.String(), Status: "waiting"})
	for {
		select {
		case <-other.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if other.err == nil {
			close(u.done[n])
			return u.keepBlob(ctx, n)
		}
		flight, first := u.set.flights.take(u.keys[n])
		if !first {
			other = flight
			continue
		}
		if err := u.slots.Acquire(ctx, 1); err != nil {
			u.set.flights.land(u.keys[n], flight, err)
			return err
		}
		return u.lead(ctx, n, flight)
	}
}

// lead unpacks layer n. The caller took a slot for it.
func (u *unpacking) lead(ctx context.Context, n int, f *flight) (err error) {
	defer func() { u.set.flights.land(u.keys[n], f, err) }()
	if _, err := u.set.Snapshots.Stat(ctx, u.keys[n]); err == nil { // meanwhile
		u.slots.Release(1)
		close(u.done[n])
		return u.keepBlob(ctx, n)
	}
	in, tarSize, err := u.ingest(ctx, n)
	if err != nil {
		return fmt.Errorf("layer %s: %w", u.layers[n].Digest, err)
	}
	var parent snapshot.Key
	if n > 0 {
		parent = u.keys[n-1]
		select {
		case <-u.done[n-1]:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), in.Abort(context.WithoutCancel(ctx)))
		}
	}
	labels := layerLabels(in.Size(), tarSize)
	labels[snapshot.LayerDiff], labels[snapshot.LayerBlob] = u.layers[n].DiffID.String(), u.layers[n].Digest.String()
	if _, err := in.Commit(ctx, u.keys[n], parent, labels); err != nil && !errors.Is(err, errs.Exists) {
		return errors.Join(err, in.Abort(context.WithoutCancel(ctx)))
	}
	close(u.done[n])
	u.report(spec.Progress{Phase: spec.Unpacking, Item: u.layers[n].Digest.String(), Status: "complete"})
	return nil
}

// ingest reads the layer once: its blob is stored, its tar hashed and
// unpacked on the way. It gives the slot back before it waits for the disk.
func (u *unpacking) ingest(ctx context.Context, n int) (in snapshot.Ingest, tarSize int64, err error) {
	ctx, end := span.Start(ctx, "fetch and unpack layer", "layer", u.layers[n].Digest.String())
	defer func() { end(err) }()
	release := sync.OnceFunc(func() { u.slots.Release(1) })
	defer release()
	st, err := u.open(ctx, n)
	if err != nil {
		return nil, 0, err
	}
	tar := &hashed{r: st, hash: sha256.New(), report: u.report, item: u.layers[n].Digest.String()}
	in, err = u.set.Snapshots.Ingest(ctx, tar)
	if err == nil {
		err = st.Finish()
	}
	release()
	err = errors.Join(err, st.Close())
	if err == nil {
		err = tar.check(u.layers[n].DiffID)
	}
	if err != nil && in != nil {
		err = errors.Join(err, in.Abort(context.WithoutCancel(ctx)))
	}
	return in, tar.read, err
}

// layerLabels are those of a layer's snapshot.
func layerLabels(size, tarSize int64) map[string]string {
	return map[string]string{layerLabel: strconv.FormatInt(size, 10), tarLabel: strconv.FormatInt(tarSize, 10)}
}

// hashed is a tar that is hashed and reported while it is read.
type hashed struct {
	r    io.Reader
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	report func(spec.Progress)
	item   string
	read   int64
	last   time.Time
}

// every is how often progress is reported, at most.
const every = 100 * time.Millisecond

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	_, _ = h.hash.Write(p[:n]) // a hash never fails
	h.read += int64(n)
	if n > 0 && time.Since(h.last) >= every {
		h.last = time.Now()
		h.report(spec.Progress{Phase: spec.Unpacking, Item: h.item, Current: h.read})
	}
	return n, err
}

func (h *hashed) check(want digest.Digest) error {
	got := digest.NewDigestFromBytes(digest.SHA256, h.hash.Sum(nil))
	if want.Algorithm() != digest.SHA256 {
		return errs.New(errs.Unsupported, "diff ID %s: only sha256 is known", want)
	}
	if got != want {
		return errs.New(errs.Invalid, "the layer unpacks to %s, but the image's configuration says %s", got, want)
	}
	return nil
}

// flights are the layers being unpacked, by key: each by one pull at a time.
type flights struct {
	mu    sync.Mutex
	byKey map[snapshot.Key]*flight
}

type flight struct {
	done chan struct{}
	err  error // set before done is closed
}

// take returns the flight of key; first says that it is the caller's, who must
// land it.
func (f *flights) take(key snapshot.Key) (_ *flight, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if other := f.byKey[key]; other != nil {
		return other, false
	}
	own := &flight{done: make(chan struct{})}
	if f.byKey == nil {
		f.byKey = map[snapshot.Key]*flight{}
	}
	f.byKey[key] = own
	return own, true
}

func (f *flights) land(key snapshot.Key, own *flight, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byKey, key)
	own.err = err
	close(own.done)
}
