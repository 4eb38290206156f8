package lazy

import (
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
)

// How the background asks: for small bodies first, since most of what a
// container opens is small.
const (
	smallBody = 64 << 10
	firstGap  = 64 << 10  // of a blob that is fetched along with what lies on both sides
	restGap   = 512 << 10 // a request costs about as much
	runSize   = 8 << 20
)

// supply is one fetch of a body that is waited for, by any number.
type supply struct {
	done chan struct{}
	err  error
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
			f = &supply{done: make(chan struct{})}
			s.supply[d] = f
			s.hurry(1)
		}
		s.mu.Unlock()
		if !found {
			f.err = s.tryBring(ctx, d)
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

func (s *Set) tryBring(ctx context.Context, d tree.Digest) (err error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		if s.Bodies.Has(d) {
			s.arrived(d)
			return nil
		}
		holders := s.holders(d)
		if len(holders) == 0 {
			return errs.New(errs.NotFound, "no layer that is on its way has it")
		}
		final := true
		for _, l := range holders {
			body, _ := l.Table.Find(d)
			if err = s.fetch(ctx, l, l.Table.Around(body), true); s.Bodies.Has(d) {
				s.arrived(d)
				return nil
			}
			final = final && isFinal(err)
		}
		if err == nil {
			err = errs.New(errs.Invalid, "the registry gave other bytes")
		}
		if final && isFinal(err) {
			return err
		}
		if sleep(ctx, pause) != nil {
			return err
		}
	}
}

// fetch gets a run of a layer's blob and stores the missing bodies in it.
func (s *Set) fetch(ctx context.Context, l *layer, run toc.Run, urgent bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	from, to := l.Table.Bytes(run)
	r, err := l.Part(ctx, from, to)
	if err != nil {
		return err
	}
	defer r.Close()
	var in io.Reader = r
	if !urgent {
		in = &patient{ctx: ctx, r: r, set: s}
	}
	var wrong error
	err = l.Table.Extract(run, in, func(b toc.Body) bool { return s.lacks(l, b.Object) }, func(b toc.Body, r io.Reader) error {
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

// Patient reads r while nobody waits for anything else.
func (s *Set) Patient(ctx context.Context, r io.Reader) io.Reader {
	return &patient{ctx: ctx, r: r, set: s}
}

// patient reads while nobody waits for anything else.
type patient struct {
	ctx context.Context //nolint:containedctx // of the one fetch
	r   io.Reader
	set *Set
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
		if sleep(s.life, pause) != nil {
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
	wanted := make(map[tree.Digest]bool, len(first))
	for _, d := range first {
		wanted[d] = true
	}
	err := s.phase(layers, func(ctx context.Context, l *layer) error {
		return s.runs(ctx, l, firstGap, func(d tree.Digest) bool { return wanted[d] })
	})
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
		if !slices.ContainsFunc(l.Table.Within(run), func(b toc.Body) bool { return s.lacks(l, b.Object) && want(b.Object) }) {
			continue // they came meanwhile
		}
		if err := s.fetch(ctx, l, run, false); err != nil {
			return err
		}
	}
	return nil
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
