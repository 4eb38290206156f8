package container

import (
	"context"
	"sync"
	"time"
)

// forgetter drops ended processes from their owner some time after their end:
// only then is the record of the end sure to be durable.
type forgetter struct {
	set   *Set
	mu    sync.Mutex
	ids   map[string]bool
	timer *time.Timer
}

// forgetDelay is longer than kv.Later may take.
const forgetDelay = time.Second

func (f *forgetter) init(s *Set) { f.set, f.ids = s, map[string]bool{} }

func (f *forgetter) later(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ids[id] = true
	if f.timer == nil && f.set.life.Err() == nil {
		f.timer = time.AfterFunc(forgetDelay, func() { f.set.background.Go(f.flush) })
	}
}

// takes says whether id waits to be dropped; it does not any more.
func (f *forgetter) takes(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	waits := f.ids[id]
	delete(f.ids, id)
	return waits
}

// now drops id at once, if it waits to be dropped.
func (f *forgetter) now(ctx context.Context, id string) error {
	if !f.takes(id) {
		return nil
	}
	err := f.set.Processes.Forget(ctx, id)
	if err != nil {
		f.later(id)
	}
	return err
}

func (f *forgetter) flush() {
	f.mu.Lock()
	ids := f.ids
	f.ids, f.timer = map[string]bool{}, nil
	f.mu.Unlock()
	for id := range ids {
		if !f.set.drop(id) && f.set.life.Err() != nil {
			return // there is no keeper any more to be told: the next node forgets them
		}
	}
}

// dropTimeout is the most that the keeper may take to forget a process.
const dropTimeout = 2 * time.Second

// drop makes the owner of the processes forget one, now or later.
func (s *Set) drop(id string) (done bool) {
	// Not for ever: at the node's end nobody may be left to answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), dropTimeout)
	defer cancel()
	err := s.Processes.Forget(ctx, id)
	if err != nil {
		s.Log.Warn("cannot forget an ended process; will try again", "id", id, "error", err)
		s.forget.later(id)
	}
	return err == nil
}
