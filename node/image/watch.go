package image

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"berth/spec"
)

// watches end pulls of which nothing comes. Pulls that want the same layer wait
// for one of them to fetch it, so what one of them has got counts for all.
type watches struct {
	mu  sync.Mutex
	got map[string]time.Time // when something of an item last came
	all map[*watch]bool
}

// watch is that of one pull.
type watch struct {
	items map[string]bool // that it wants
	begun time.Time
	timer *time.Timer // nil for ever
}

// errStalled is why a pull ends of which nothing comes.
var errStalled = errors.New("nothing came")

// begin watches a pull: it is to be told of what comes of it, and is canceled
// when nothing did for as long as patience; 0 is for ever. stop ends the watch,
// and says whether it canceled.
func (w *watches) begin(ctx context.Context, patience time.Duration) (_ context.Context, progress func(spec.Progress), stop func() bool) {
	one := &watch{items: map[string]bool{}, begun: time.Now()}
	w.mu.Lock()
	if w.all == nil {
		w.all, w.got = map[*watch]bool{}, map[string]time.Time{}
	}
	w.all[one] = true
	ctx, cancel := context.WithCancelCause(ctx)
	if patience > 0 {
		one.timer = time.AfterFunc(patience, func() {
			if !w.wait(one, patience) {
				cancel(errStalled)
			}
		})
	}
	w.mu.Unlock()
	return ctx, func(p spec.Progress) { w.note(one, p) }, func() bool {
		w.forget(one)
		stalled := errors.Is(context.Cause(ctx), errStalled)
		cancel(nil)
		return stalled
	}
}

// note takes what a pull reports: that it waits for another is nothing that
// came.
func (w *watches) note(one *watch, p spec.Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one.items[p.Item] = true
	if p.Status != "waiting" && !strings.HasPrefix(p.Status, "retrying") {
		w.got[p.Item] = time.Now()
	}
}

// wait waits again for the rest of patience since something last came, unless
// there is none.
func (w *watches) wait(one *watch, patience time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	latest := one.begun
	for item := range one.items {
		if at := w.got[item]; at.After(latest) {
			latest = at
		}
	}
	left := patience - time.Since(latest)
	if left > 0 && w.all[one] {
		one.timer.Reset(left)
	}
	return left > 0
}

func (w *watches) forget(one *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, one)
	if one.timer != nil {
		one.timer.Stop()
	}
	for item := range one.items {
		wanted := false
		for other := range w.all {
			wanted = wanted || other.items[item]
		}
		if !wanted {
			delete(w.got, item)
		}
	}
}
