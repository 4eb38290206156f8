package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/base/errs"
	"berth/image/toc"
	"berth/image/tree"
	"berth/node/snapshot"
)

// How the background asks: for small bodies first, since most of what a
// container opens is small.
const (
	smallBody = 64 << 10
	firstGap  = 64 << 10  // of a blob that is fetched along with what lies on both sides
	restGap   = 512 << 10 // a request costs about as much
	runSize   = 8 << 20
	// joinSize is how long a request of the background may be for somebody who
	// waits to rather wait for that one than to ask again.
	joinSize = 4 << 20
	// ahead is how many requests at once bring what is wanted first: few, so
	// that they come in order.
	ahead = 2
	// atOnce bounds the requests for bodies that somebody waits for.
	atOnce = 16
)

// supply is one fetch of a body that is waited for, by any number.
type supply struct {
	here chan struct{} // closed when the body is here, by whatever way
	done chan struct{}
	err  error
}

// flight is a request on its way.
type flight struct {
	layer   *layer
	run     toc.Run
	end     int64 // of what it brings of the content
	bytes   int64
	hurried chan struct{} // closed when somebody waits for it
	done    chan struct{}
}

// wanted answers the process: it has somebody who waits for a body.
func (s *Set) wanted(p *process, d tree.Digest) {
	ctx, cancel := context.WithTimeout(s.life, s.Deadline)
	defer cancel()
	err := s.bring(ctx, d)
	switch {
	case s.life.Err() != nil: // the next node will be asked
	case err != nil:
		s.Log.WarnContext(ctx, "a missing file cannot be had", "digest", fmt.Sprintf("%x", d), "err", err)
		p.tell(opFailed, append(d[:], err.Error()...))
	default:
		p.tell(opHere, d[:])
	}
}

// bring fetches a body at once, with all else that comes with it.
func (s *Set) bring(ctx context.Context, d tree.Digest) error {
	for {
		s.mu.Lock()
		f, found := s.supply[d]
		if !found {
			f = &supply{here: make(chan struct{}), done: make(chan struct{})}
			s.supply[d] = f
			s.hurry(1)
		}
		s.mu.Unlock()
		if !found {
			f.err = s.tryBring(ctx, d, f.here)
			s.mu.Lock()
			delete(s.supply, d)
			s.hurry(-1)
			s.mu.Unlock()
			close(f.done)
			return f.err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if f.err == nil || isFinal(f.err) {
			return f.err
		} // else the other was out of time, and we may not be
	}
}

// hurry counts what is waited for. mu is held.
func (s *Set) hurry(n int) {
	was := s.urgent
	s.urgent += n
	switch {
	case was == 0 && s.urgent > 0:
		s.calm = make(chan struct{})
	case was > 0 && s.urgent == 0:
		close(s.calm)
	}
}

func (s *Set) tryBring(ctx context.Context, d tree.Digest, here <-chan struct{}) (err error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		if s.Bodies.Has(d) {
			s.arrived(d)
			return nil
		}
		holders := s.holders(d)
		if len(holders) == 0 {
			return errs.New(errs.NotFound, "no layer that is on its way has it")
		}
		if f := s.join(holders, d); f != nil {
			select {
			case <-here:
			case <-f.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if s.Bodies.Has(d) {
				s.arrived(d)
				return nil
			}
		}
		var final bool
		if final, err = s.ask(ctx, holders, d); err == nil || final {
			return err
		}
		if !snapshot.Rest(ctx, pause) {
			return err
		}
	}
}

// ask fetches a body from the layers that have it, one after the other. final
// says that none of them will ever give it.
func (s *Set) ask(ctx context.Context, holders []*layer, d tree.Digest) (final bool, err error) {
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return false, err
	}
	defer s.slots.Release(1)
	final = true
	for _, l := range holders {
		if !s.Bodies.Has(d) { // what others asked for may have brought it
			body, _ := l.Table.Find(d)
			err = s.fetch(ctx, l, l.Table.Around(body), body.Offset+body.Size, true)
		}
		if s.Bodies.Has(d) {
			s.arrived(d)
			return false, nil
		}
		if err == nil {
			err = errs.New(errs.Invalid, "the registry gave other bytes")
		}
		final = final && isFinal(err)
	}
	return final, err
}

// fetch gets a run of a layer's blob, as far as the place end in the content,
// and stores the missing bodies in it.
func (s *Set) fetch(ctx context.Context, l *layer, run toc.Run, end int64, urgent bool) error {
	_, to := l.Table.Bytes(run)
	guess := l.Table.Upto(run, end)
	err := s.fetchUpto(ctx, l, run, end, guess, urgent)
	if guess < to && errors.Is(err, errs.Invalid) {
		err = s.fetchUpto(ctx, l, run, end, to, urgent) // it was not enough
	}
	return err
}

func (s *Set) fetchUpto(ctx context.Context, l *layer, run toc.Run, end, to int64, urgent bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	from, _ := l.Table.Bytes(run)
	f := s.takeOff(l, run, end, to-from, urgent)
	defer s.land(f)
	s.Log.DebugContext(ctx, "fetch", "blob", l.Table.Blob, "from", from, "bytes", to-from, "urgent", urgent)
	r, err := l.Part(ctx, from, to)
	if err != nil {
		return err
	}
	defer r.Close()
	var in io.Reader = r
	if !urgent {
		in = &patient{ctx: ctx, r: r, set: s, hurried: f.hurried}
	}
	var wrong error
	wanted := func(b toc.Body) bool { return b.Offset+b.Size <= end && s.lacks(l, b.Object) }
	err = l.Table.Extract(run, in, wanted, func(b toc.Body, r io.Reader) error {
		err := s.Bodies.Fill(ctx, b.Object, b.Size, r)
		if errors.Is(err, errs.Invalid) {
			wrong = err // others may be right
			return nil
		}
		if err == nil {
			s.arrived(b.Object)
		}
		return err
	})
	return errors.Join(err, wrong)
}

// join finds a request on its way that brings a body soon enough.
func (s *Set) join(holders []*layer, d tree.Digest) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.flights {
		if !slices.Contains(holders, f.layer) {
			continue
		}
		body, _ := f.layer.Table.Find(d)
		around := f.layer.Table.Around(body)
		if around.First < f.run.First || around.Last > f.run.Last || body.Offset+body.Size > f.end || f.bytes > joinSize && !isClosed(f.hurried) {
			continue
		}
		if !isClosed(f.hurried) {
			close(f.hurried)
		}
		return f
	}
	return nil
}

func (s *Set) takeOff(l *layer, run toc.Run, end, bytes int64, urgent bool) *flight {
	f := &flight{layer: l, run: run, end: end, bytes: bytes, hurried: make(chan struct{}), done: make(chan struct{})}
	if urgent {
		close(f.hurried)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flights[f] = struct{}{}
	return f
}

func (s *Set) land(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flights, f)
	close(f.done)
}

// Patient reads r while nobody waits for anything else.
func (s *Set) Patient(ctx context.Context, r io.Reader) io.Reader {
	return &patient{ctx: ctx, r: r, set: s}
}

// patient reads while nobody waits for anything else.
type patient struct {
	ctx     context.Context //nolint:containedctx // of the one fetch
	r       io.Reader
	set     *Set
	hurried <-chan struct{} // closed when this is waited for itself; nil is never
}

func (p *patient) Read(b []byte) (int, error) {
	p.set.mu.Lock()
	calm := p.set.calm
	p.set.mu.Unlock()
	if !isClosed(calm) {
		timer := time.NewTimer(time.Second) // so that it comes to its end all the same
		defer timer.Stop()
		select {
		case <-calm:
		case <-p.hurried:
		case <-timer.C:
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		}
	}
	return p.r.Read(b)
}

// fill fetches all that layers miss, until it is here or nobody wants it.
func (s *Set) fill(name string, layers []*layer, first []tree.Digest) {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		before := s.leftOf(layers)
		err := s.fillOnce(layers, first)
		layers = slices.DeleteFunc(layers, func(l *layer) bool { return isClosed(l.whole) })
		if len(layers) == 0 || s.life.Err() != nil {
			return
		}
		if s.leftOf(layers) < before {
			pause = time.Second
		}
		s.Log.WarnContext(s.life, "files of an image are still missing", "image", name, "files", s.leftOf(layers), "err", err)
		if !snapshot.Rest(s.life, pause) {
			return
		}
	}
}

func (s *Set) leftOf(layers []*layer) (n int) {
	for _, l := range layers {
		n += s.left(l)
	}
	return n
}

// fillOnce fetches in order: what a container wanted when it started, then
// small bodies, then the rest.
func (s *Set) fillOnce(layers []*layer, first []tree.Digest) error {
	err := s.lead(layers, first)
	if err == nil {
		err = s.phase(layers, func(ctx context.Context, l *layer) error {
			if l.Rest != nil {
				return l.Rest(ctx)
			}
			return s.runs(ctx, l, restGap, func(d tree.Digest) bool { return s.sizeOf(l, d) <= smallBody })
		})
	}
	if err == nil {
		err = s.phase(layers, func(ctx context.Context, l *layer) error {
			return s.runs(ctx, l, restGap, func(tree.Digest) bool { return true })
		})
	}
	return errors.Join(err, s.finish(layers))
}

// lead fetches what is wanted first in its order, whatever layers it is in.
func (s *Set) lead(layers []*layer, first []tree.Digest) error {
	ranks := make(map[tree.Digest]int, len(first))
	for i, d := range first {
		ranks[d] = i
	}
	type job struct {
		layer *layer
		run   toc.Run
		rank  int
	}
	var jobs []job
	wanted := func(l *layer) func(tree.Digest) bool {
		return func(d tree.Digest) bool { _, ok := ranks[d]; return ok && s.lacks(l, d) }
	}
	for _, l := range layers {
		for _, run := range l.Table.Runs(wanted(l), firstGap, joinSize) {
			j := job{l, run, len(ranks)}
			for _, b := range l.Table.Within(run) {
				if rank, ok := ranks[b.Object]; ok {
					j.rank = min(j.rank, rank)
				}
			}
			jobs = append(jobs, j)
		}
	}
	slices.SortStableFunc(jobs, func(a, b job) int { return cmp.Compare(a.rank, b.rank) })
	var g errgroup.Group
	g.SetLimit(ahead)
	for _, j := range jobs {
		g.Go(func() error { return s.run(j.layer.life, j.layer, j.run, wanted(j.layer)) })
	}
	return g.Wait()
}

// phase does something for each layer, as much at once as is allowed.
func (s *Set) phase(layers []*layer, do func(context.Context, *layer) error) error {
	var g errgroup.Group
	g.SetLimit(s.Parallel)
	errors := make([]error, len(layers))
	for i, l := range layers {
		g.Go(func() error {
			if l.life.Err() == nil {
				errors[i] = do(l.life, l)
			}
			return nil // the others go on
		})
	}
	_ = g.Wait()
	return joined(errors)
}

func joined(all []error) error { return errors.Join(all...) }

func (s *Set) sizeOf(l *layer, d tree.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.missing[d]
}

// runs fetches the missing bodies of a layer that are wanted.
func (s *Set) runs(ctx context.Context, l *layer, gap int64, want func(tree.Digest) bool) error {
	runs := l.Table.Runs(func(d tree.Digest) bool { return s.lacks(l, d) && want(d) }, gap, runSize)
	for _, run := range runs {
		if err := s.run(ctx, l, run, want); err != nil {
			return err
		}
	}
	return nil
}

// run fetches a run, unless all that is wanted of it came meanwhile.
func (s *Set) run(ctx context.Context, l *layer, run toc.Run, want func(tree.Digest) bool) error {
	if ctx.Err() != nil {
		return nil // the layer is forgotten
	}
	end := int64(-1)
	for _, b := range l.Table.Within(run) {
		if s.lacks(l, b.Object) && want(b.Object) {
			end = b.Offset + b.Size
		}
	}
	if end < 0 {
		return nil
	}
	return s.fetch(ctx, l, run, end, false)
}

// finish declares layers whole that miss nothing.
func (s *Set) finish(layers []*layer) error {
	var err error
	for _, l := range layers {
		if l.life.Err() != nil || s.left(l) > 0 {
			continue
		}
		if e := l.Whole(l.life); e != nil {
			err = errors.Join(err, e)
			continue
		}
		s.mu.Lock()
		s.leave(l)
		s.mu.Unlock()
	}
	return err
}
