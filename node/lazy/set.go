package lazy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"berth/base/errs"
	"berth/image/toc"
	"berth/image/tree"
)

// Bodies is where bodies go.
type Bodies interface {
	// Has says whether a body is here.
	Has(d tree.Digest) bool
	// Fill stores a body, whole under its name or not at all. Invalid: the
	// bytes are not those of d.
	Fill(ctx context.Context, d tree.Digest, size int64, body io.Reader) error
}

// Config is what a Set needs.
type Config struct {
	Socket   string
	PidFile  string
	Command  []string // starts a process that serves Socket and PidFile
	Bodies   Bodies
	Deadline time.Duration // how long a wanted body is tried for; somewhat less than Deadline when 0
	Parallel int           // requests at once in the background; 3 when 0
	Log      *slog.Logger
}

// Layer is a layer of which bodies are missing.
type Layer struct {
	Key     string
	Table   *toc.Table
	Missing []Missing
	// Part opens bytes of the layer's blob.
	Part func(ctx context.Context, from, to int64) (io.ReadCloser, error)
	// Rest, where it is set, brings all bodies of the layer in another way, once
	// the first ones are here.
	Rest func(ctx context.Context) error
	// Whole is called when all bodies are here; the layer is forgotten when it
	// returns nil, else it is called again some time later.
	Whole func(ctx context.Context) error
}

// Image is layers that are wanted together.
type Image struct {
	Name   string
	Layers []Layer
	// First are bodies that are wanted first, in this order.
	First []tree.Digest
}

// Set is what is missing on this node. Safe for concurrent use.
//
// Lock order: mu, then conn's.
type Set struct {
	Config
	life context.Context //nolint:containedctx // what works in the background ends with it
	stop context.CancelFunc
	work sync.WaitGroup
	// reaped are processes that we started; they are waited for whenever they end.
	reaped sync.WaitGroup

	slots    *semaphore.Weighted
	starting sync.Mutex // one process is started at a time

	mu      sync.Mutex
	layers  map[string]*layer
	process *process // nil while there is none
	supply  map[tree.Digest]*supply
	flights map[*flight]struct{}
	urgent  int           // bodies that somebody waits for
	calm    chan struct{} // closed while urgent is 0
}

// layer is a Layer on its way.
type layer struct {
	Layer
	life    context.Context //nolint:containedctx // ends when the layer is forgotten
	stop    context.CancelFunc
	whole   chan struct{} // closed when it is whole, or forgotten
	missing map[tree.Digest]int64
}

// Open finds the process of an earlier node, if there is one. Layers that were
// missing bodies then must be added again before Ready.
func Open(ctx context.Context, c Config) (*Set, error) {
	c.Deadline = cmp.Or(c.Deadline, Deadline-5*time.Second)
	c.Parallel = cmp.Or(c.Parallel, 3)
	s := &Set{Config: c, layers: map[string]*layer{}, supply: map[tree.Digest]*supply{}, flights: map[*flight]struct{}{}, slots: semaphore.NewWeighted(atOnce), calm: make(chan struct{})}
	close(s.calm)
	s.life, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

// Ready says that all layers which an earlier node left are added. A process
// that it left goes on, or ends if nothing is missing.
func (s *Set) Ready(ctx context.Context) {
	s.starting.Lock()
	defer s.starting.Unlock()
	p, err := s.dial()
	if err != nil {
		return // there is none: the next who needs one starts it
	}
	if err := s.adopt(ctx, p); err != nil {
		s.Log.WarnContext(ctx, "the process for missing files is lost", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retireIdle()
}

// Close ends the work in the background. The process stays.
func (s *Set) Close() error {
	s.stop()
	s.mu.Lock()
	if s.process != nil {
		s.process.close()
	}
	s.mu.Unlock()
	s.work.Wait()
	return nil
}

// Add declares bodies of an image missing, and begins to fetch them. Layers
// that are on their way already stay as they are.
func (s *Set) Add(image Image) {
	var added []*layer
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range image.Layers {
		if s.layers[l.Key] != nil {
			continue
		}
		made := &layer{Layer: l, whole: make(chan struct{}), missing: make(map[tree.Digest]int64, len(l.Missing))}
		made.life, made.stop = context.WithCancel(s.life)
		for _, m := range l.Missing {
			made.missing[m.Object] = m.Size
		}
		added = append(added, made)
	}
	for _, l := range added {
		s.layers[l.Key] = l
		if s.process != nil {
			s.process.name(l.Missing) // a process that is lost hears it all when another is there
		}
	}
	if len(added) > 0 {
		s.work.Go(func() { s.fill(image.Name, added, image.First) })
	}
}

// Missing says whether bodies of any of the layers are missing.
func (s *Set) Missing(keys ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(keys, func(key string) bool { return s.layers[key] != nil })
}

// Wait returns when all bodies of the layers are here.
func (s *Set) Wait(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		s.mu.Lock()
		l := s.layers[key]
		s.mu.Unlock()
		if l == nil {
			continue
		}
		select {
		case <-l.whole:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Forget ends the work for a layer that is not wanted any more.
func (s *Set) Forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[key]; l != nil {
		s.leave(l)
	}
}

// leave takes a layer out. mu is held.
func (s *Set) leave(l *layer) {
	if s.layers[l.Key] != l {
		return
	}
	delete(s.layers, l.Key)
	l.stop()
	close(l.whole)
	s.retireIdle()
}

// retireIdle lets the process go when nothing is missing. mu is held.
func (s *Set) retireIdle() {
	if len(s.layers) == 0 && s.process != nil {
		s.process.retire()
		s.process = nil
	}
}

// arrived says that bodies are here, by whatever way.
func (s *Set) arrived(digests ...tree.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range digests {
		for _, l := range s.layers {
			delete(l.missing, d)
		}
		if f := s.supply[d]; f != nil && !isClosed(f.here) {
			close(f.here)
		}
		if s.process != nil {
			s.process.tell(opHere, d[:])
		}
	}
}

// lacks says whether a layer still misses a body, after a look at whether it
// came some other way.
func (s *Set) lacks(l *layer, d tree.Digest) bool {
	s.mu.Lock()
	_, missing := l.missing[d]
	s.mu.Unlock()
	if missing && s.Bodies.Has(d) {
		s.arrived(d)
		return false
	}
	return missing
}

// left counts what a layer misses.
func (s *Set) left(l *layer) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(l.missing)
}

// holders are the layers in whose blobs a body lies.
func (s *Set) holders(d tree.Digest) []*layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*layer
	for _, l := range s.layers {
		if _, ok := l.Table.Find(d); ok {
			found = append(found, l)
		}
	}
	return found
}

// isFinal says that trying again is no use.
func isFinal(err error) bool {
	for _, kind := range []errs.Kind{errs.Anonymous, errs.Denied, errs.NotFound, errs.Unsupported} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
