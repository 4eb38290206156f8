package image

import (
	"sync"
	"time"

	"berth/spec"
)

// Pulled says how a pull went.
type Pulled struct {
	Bytes int64 // that came over the network
	Took  time.Duration
	Err   error
}

// tally counts what a pull fetches.
type tally struct {
	begun time.Time

	mu    sync.Mutex
	at    map[string]int64 // how far each blob is
	bytes int64
}

func newTally() *tally { return &tally{begun: time.Now(), at: map[string]int64{}} }

// watch passes progress on, and counts. What was here before a download went
// on is not counted.
func (t *tally) watch(report func(spec.Progress)) func(spec.Progress) {
	return func(p spec.Progress) {
		if p.Phase == spec.Fetching && p.Item != "" {
			t.count(p.Item, p.Current)
		}
		if report != nil {
			report(p)
		}
	}
}

func (t *tally) count(blob string, current int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if before, known := t.at[blob]; known && current > before {
		t.bytes += current - before
	}
	t.at[blob] = max(t.at[blob], current)
}

// told says how the pull went to whoever wants to know.
func (t *tally) told(tell func(Pulled), err error) {
	if tell != nil {
		t.mu.Lock()
		bytes := t.bytes
		t.mu.Unlock()
		tell(Pulled{Bytes: bytes, Took: time.Since(t.begun), Err: err})
	}
}
