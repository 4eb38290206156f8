package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"berth/base/errs"
	"berth/base/span"
)

// pass is one collection. Guarded by Set.mu, but for what only the collection
// itself touches before the graph is published.
type pass struct {
	began time.Time
	// touched is what was held since the pass began.
	touched map[node]bool
	// graph is nil until all is marked.
	graph    graph
	removing node
	removed  int
}

// graph is the resources as they were, and what each refers to.
type graph map[node]*vertex

type vertex struct {
	owner Owner // nil: only referred to
	root  bool
	refs  []node // by what it is
	ties  []node // by labels, and by those of others
	maybe []condition
	used  []time.Time
	flat  bool // a lease that does not keep what its resources refer to
	mark  mark
	next  time.Time // when it ceases to be a root
}

// mark says how a vertex can be reached.
type mark int

const (
	dead mark = iota
	flat      // for itself and its refs
	full      // for all that it refers to
)

// Collect removes what can be reached from no root, and returns when that has
// gone, and its disk with it. What was made or referred to after the call may
// stay.
func (s *Set) Collect(ctx context.Context) error {
	s.mu.Lock()
	want := s.begun + 1 // the first pass that has yet to look
	s.awaited = true
	s.mu.Unlock()
	return s.collectFrom(ctx, want)
}

// collectFrom returns when a pass of at least that number has ended.
func (s *Set) collectFrom(ctx context.Context, want uint64) error {
	select {
	case s.one <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.one }()
	s.mu.Lock()
	done, last := s.begun >= want, s.last
	s.mu.Unlock()
	if done && last == nil {
		return nil // somebody else's pass began after our call
	}
	err := s.collect(ctx)
	s.mu.Lock()
	s.last = err
	s.mu.Unlock()
	return err
}

func (s *Set) collect(ctx context.Context) (err error) {
	ctx, end := span.Start(ctx, "collect")
	defer func() { end(err) }()
	p := &pass{began: time.Now(), touched: map[node]bool{}}
	s.mu.Lock()
	s.begun++
	s.pass = p
	awaited := s.awaited
	s.awaited = false
	for n := range s.holds {
		p.touched[n] = true
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.pass = nil
		s.mu.Unlock()
	}()
	g, err := s.read(ctx, p.began)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	g.markRoots()
	unused, next := g.unreached(), g.nextExpiry()
	s.mu.Lock()
	for n := range p.touched {
		g.reach(n, full)
	}
	p.graph = g
	s.next = sooner(next, s.firstExpiry(p.began))
	s.mu.Unlock()
	err = s.sweep(ctx, p, unused)
	if (p.removed > 0 || awaited) && s.Freed != nil {
		err = errors.Join(err, s.Freed(ctx))
	}
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	return nil
}

// read asks the owners, and itself, for what there is.
func (s *Set) read(ctx context.Context, now time.Time) (graph, error) {
	g := graph{}
	for _, o := range append([]Owner{leases{s}}, s.owners...) {
		if err := o.Items(ctx, func(i Item) { g.add(o, i, now) }); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	g.decide(now)
	return g, nil
}

// decide makes references of those that depend on something and count.
func (g graph) decide(now time.Time) {
	for n, v := range g {
		for _, c := range v.maybe {
			to := node{n.namespace, c.to}
			w := g[to]
			if w != nil && slices.ContainsFunc(w.used, func(at time.Time) bool { return c.fits(now.Sub(at)) }) {
				v.ties = append(v.ties, to)
			}
		}
	}
}

func (g graph) at(n node) *vertex {
	v := g[n]
	if v == nil {
		v = &vertex{}
		g[n] = v
	}
	return v
}

func (g graph) add(o Owner, i Item, now time.Time) {
	own := node{i.Namespace, i.Resource}
	v := g.at(own)
	v.owner = o
	v.root = v.root || isRoot(i.Labels)
	until, expires := Expires(i.Labels)
	switch {
	case i.Root && (!expires || now.Before(until)):
		v.root = true
		v.expireAt(until, expires)
	case now.Before(i.Until):
		v.root = true
		v.expireAt(i.Until, true)
	}
	for _, r := range i.Refs {
		v.refs = append(v.refs, node{i.Namespace, r})
	}
	v.flat = i.Kind == Leases && isFlat(i.Labels)
	for _, r := range References(i.Labels) {
		v.ties = append(v.ties, node{i.Namespace, r})
	}
	switch _, isSnapshot := Snapshotter(i.Kind); {
	case isSnapshot:
		v.used = used(i.Labels)
	case i.Kind == Images, i.Kind == Content:
		v.maybe = conditions(i.Labels)
	}
	for _, r := range referrers(i.Labels) {
		by := g.at(node{i.Namespace, r})
		by.ties = append(by.ties, own)
	}
}

func (v *vertex) expireAt(at time.Time, expires bool) {
	if expires {
		v.next = sooner(v.next, at)
	}
}

// markRoots marks all that can be reached from roots.
func (g graph) markRoots() {
	for n, v := range g {
		switch {
		case v.root && v.flat:
			g.reach(n, flat)
		case v.root:
			g.reach(n, full)
		}
	}
}

// reach marks a node and what it refers to.
func (g graph) reach(from node, how mark) {
	todo := []node{from}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		v := g[n]
		if v == nil || v.mark >= how {
			continue
		}
		v.mark = how
		todo = append(todo, v.refs...)
		if how == full {
			todo = append(todo, v.ties...)
		}
	}
}

// rescue keeps n, and what it refers to, from what is left of the pass. Set.mu
// is held.
func (p *pass) rescue(n node) {
	if p.graph == nil {
		p.touched[n] = true
		return
	}
	p.graph.reach(n, full)
}

// sweep removes what is not marked, each after all that refer to it. What
// cannot be removed stays, and what it refers to may then go: that is not
// worse than if it had been made in that moment.
func (s *Set) sweep(ctx context.Context, p *pass, unused []node) error {
	var failed error
	for _, n := range unused {
		if err := ctx.Err(); err != nil {
			return errors.Join(failed, err)
		}
		s.mu.Lock()
		v := p.graph[n]
		alive := v.mark != dead
		if !alive {
			p.removing = n
		}
		s.mu.Unlock()
		if alive {
			continue
		}
		err := v.owner.Remove(ctx, n.namespace, n.Resource)
		s.mu.Lock()
		p.removing = node{}
		s.ended.Broadcast()
		if errors.Is(err, errs.Conflict) {
			p.graph.reach(n, full) // stays, and so does what it refers to
		}
		s.mu.Unlock()
		switch {
		case err == nil:
			p.removed++
		case errors.Is(err, errs.Conflict), errors.Is(err, errs.NotFound):
		default:
			failed = errors.Join(failed, fmt.Errorf("remove %s %s of %s: %w", n.Kind, n.ID, n.namespace, err))
		}
	}
	if p.removed > 0 && s.Log != nil {
		s.Log.DebugContext(ctx, "collected", "removed", p.removed, "took", time.Since(p.began))
	}
	return failed
}

// unreached lists what is not marked, what refers to others before these.
func (g graph) unreached() []node {
	var order []node
	seen := map[node]bool{}
	type step struct {
		node
		left []node
	}
	for start, v := range g {
		if v.mark != dead || v.owner == nil || seen[start] {
			continue
		}
		seen[start] = true
		path := []step{{start, g.below(start)}}
		for len(path) > 0 {
			top := &path[len(path)-1]
			if len(top.left) == 0 {
				order = append(order, top.node)
				path = path[:len(path)-1]
				continue
			}
			n := top.left[len(top.left)-1]
			top.left = top.left[:len(top.left)-1]
			if w := g[n]; w != nil && w.mark == dead && w.owner != nil && !seen[n] {
				seen[n] = true
				path = append(path, step{n, g.below(n)})
			}
		}
	}
	slices.Reverse(order)
	return order
}

func (g graph) below(n node) []node {
	v := g[n]
	return slices.Concat(v.refs, v.ties)
}

func (g graph) nextExpiry() time.Time {
	var next time.Time
	for _, v := range g {
		next = sooner(next, v.next)
	}
	return next
}

// sooner is the earlier of two times, of which the zero one is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
