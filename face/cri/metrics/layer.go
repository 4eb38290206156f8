package metrics

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
)

// layers remembers how much containers have written. To count a tree takes as
// long as it has files, so that is done anew only after counted, or after a
// hundred times as long as the last count took. One tree is counted at a time;
// who lists containers does not wait for that where something is known of late,
// and gets it with its time; else for a moment.
type layers struct {
	store Layers
	life  context.Context //nolint:containedctx // counting goes on after the call that began it
	end   context.CancelFunc
	log   *slog.Logger
	wait  sync.WaitGroup

	mu    sync.Mutex
	known map[string]*layer // by container
	queue []string
	busy  bool
}

// layer is what one container has written.
type layer struct {
	snapshot.Usage
	at     time.Time // zero: it was never counted
	next   time.Time // when it is worth to count again
	asked  time.Time
	queued chan struct{} // closed when it has been counted; nil where it is not to be
	missed bool          // somebody has waited for its first count in vain
}

const (
	counted    = 10 * time.Second // how long a count serves at least
	ofLate     = 30 * time.Second // and for how long it is not waited for the next
	countAtAll = time.Minute      // a tree that takes longer has no count
	hasty      = 4 * time.Millisecond
	atFirst    = 100 * time.Millisecond // for the first count of all
	patient    = 10 * time.Second
)

func (l *layers) init(ctx context.Context, store Layers, log *slog.Logger) {
	l.life, l.end = context.WithCancel(ctx)
	l.store, l.log, l.known = store, log, map[string]*layer{}
}

// of tells what containers have written, by their ids. Those that could not be
// counted in time are missing.
func (l *layers) of(ctx context.Context, containers []string, patience time.Duration) map[string]layer {
	first, again := l.ask(containers, patience)
	await(ctx, first, max(patience, atFirst))
	await(ctx, again, patience)
	l.mu.Lock()
	defer l.mu.Unlock()
	found := make(map[string]layer, len(containers))
	for _, id := range containers {
		one := l.known[id]
		if one == nil {
			continue
		}
		if one.missed = one.at.IsZero(); !one.missed {
			found[id] = *one
		}
	}
	return found
}

// await waits until all are closed, but not for longer than that.
func await(ctx context.Context, all []<-chan struct{}, patience time.Duration) {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for _, one := range all {
		select {
		case <-one:
		case <-enough.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// ask has those counted whose time has come, and returns what to wait for:
// first counts, and others.
func (l *layers) ask(containers []string, patience time.Duration) (first, again []<-chan struct{}) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range containers {
		one := l.known[id]
		if one == nil {
			one = &layer{}
			l.known[id] = one
		}
		one.asked = now
		if one.queued == nil && now.After(one.next) {
			one.queued = make(chan struct{})
			l.queue = append(l.queue, id)
		}
		switch {
		case one.queued == nil:
		case now.Sub(one.at) < ofLate && patience < patient:
		case one.at.IsZero() && !one.missed:
			first = append(first, one.queued)
		default:
			again = append(again, one.queued)
		}
	}
	for id, one := range l.known {
		if one.queued == nil && now.Sub(one.asked) > remembered {
			delete(l.known, id)
		}
	}
	if len(l.queue) > 0 && !l.busy && l.life.Err() == nil {
		l.busy = true
		l.wait.Go(l.count)
	}
	return first, again
}

// count works off the queue.
func (l *layers) count() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 || l.life.Err() != nil {
			l.busy = false
			l.mu.Unlock()
			return
		}
		id := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()

		begun := time.Now()
		usage, err := l.one(id)
		l.told(id, usage, err, begun)
	}
}

func (l *layers) one(id string) (snapshot.Usage, error) {
	ctx, cancel := context.WithTimeout(l.life, countAtAll)
	defer cancel()
	return l.store.Usage(ctx, snapshot.Key(id))
}

func (l *layers) told(id string, usage snapshot.Usage, err error, begun time.Time) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.known[id]
	close(one.queued)
	one.queued = nil
	one.next = now.Add(max(counted, 100*now.Sub(begun)))
	switch {
	case err == nil:
		one.Usage, one.at = usage, now
	case errs.KindOf(err) == errs.NotFound:
		delete(l.known, id) // it has gone meanwhile
	case l.life.Err() == nil:
		l.log.WarnContext(l.life, "what a container has written is not known", "container", id, "err", err)
	}
}
