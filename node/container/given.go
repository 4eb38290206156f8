package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// A given container lives among the others under a key of its own: its id,
// which is its client's choice, with the namespace before it unless that is
// the node's own.

func givenKey(namespace, id string) string {
	if namespace == "" || namespace == spec.DefaultNamespace {
		return id
	}
	return namespace + "+" + id
}

// keyOf is the id of a container within the Set, and on disk.
func keyOf(c *spec.Container) string { return givenKey(c.Namespace, c.ID) }

// identifier is what a name of a client has to look like: it becomes a part of
// paths.
var identifier = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`)

const identifierLength = 76

func checkIdentifier(what, name string) error {
	if len(name) > identifierLength || !identifier.MatchString(name) {
		return errs.New(errs.Invalid, "%s %.100q: want up to %d letters and digits, with single . _ - between them", what, name, identifierLength)
	}
	return nil
}

// CreateGiven adds a container whose OCI spec its client wrote. It is durable
// when this returns. errs.Exists: the namespace has one of that id.
func (s *Set) CreateGiven(ctx context.Context, g spec.Given) (spec.Given, error) {
	g.Owned = false
	return s.createGiven(ctx, g)
}

// AdmitGiven adds a container that the node has made for a pod. It outlives
// the node when this returns, and the machine's going down soon after: nothing
// here waits for a disk, also when it is removed. errs.Exists: the namespace
// has one of that id.
func (s *Set) AdmitGiven(ctx context.Context, g spec.Given) (spec.Given, error) {
	g.Owned = true
	return s.createGiven(ctx, g)
}

func (s *Set) createGiven(ctx context.Context, g spec.Given) (spec.Given, error) {
	g.Namespace = orElse(g.Namespace, spec.DefaultNamespace)
	if err := errors.Join(checkIdentifier("namespace", g.Namespace), checkIdentifier("container id", g.ID)); err != nil {
		return g, err
	}
	g.Created = time.Now().UTC()
	g.Updated = g.Created
	view := viewOf(&g)
	c := newContainer(record{Container: *view})
	c.given.Store(&g)
	if err := s.admit(c); err != nil {
		return g, err
	}
	if err := s.db.write(ctx, c); err != nil {
		s.dropFromIndex(c)
		return g, fmt.Errorf("record container %s: %w", g.ID, err)
	}
	defer c.op.Unlock() // who waits to start it is told of after this
	s.publish(view, "create", "runtime", g.Runtime)
	return g, nil
}

// admit puts a new container into the index, its op held.
func (s *Set) admit(c *container) error {
	if err := c.op.Lock(s.life); err != nil {
		return errs.New(errs.Unavailable, "the node is shutting down")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] != nil || s.pending[c.id] != "" {
		return errs.New(errs.Exists, "there is a container %s already", c.get().ID)
	}
	s.containers[c.id] = c
	s.nameLocked(c)
	return nil
}

// nameLocked lets a given container be found by its name, unless another has
// it: who named it did not ask us. Of the containers that one pod has had under
// a name it is the last. mu is held.
func (s *Set) nameLocked(c *container) {
	name := c.name()
	other := s.containers[s.names[name]]
	if other == nil && s.names[name] == "" || other != nil && succeeds(c, other) {
		s.names[name] = c.id
	}
}

// succeeds says whether c has come in the place of another.
func succeeds(c, other *container) bool {
	a, b := c.given.Load(), other.given.Load()
	return a != nil && b != nil && a.Owned && b.Owned && a.Created.After(b.Created)
}

// unnameLocked takes the name from a container that goes, and gives it to the
// one that had it before, if that is still there. mu is held, and c is not in
// the index any more.
func (s *Set) unnameLocked(c *container) {
	name := c.name()
	if s.names[name] != c.id {
		return
	}
	delete(s.names, name)
	if g := c.given.Load(); g == nil || !g.Owned {
		return
	}
	for _, other := range s.containers {
		if other.given.Load() != nil && other.name() == name {
			s.nameLocked(other)
		}
	}
}

// findGiven looks a container up by a client's own name for it.
func (s *Set) findGiven(namespace, id string) (*container, error) {
	s.mu.RLock()
	c := s.containers[givenKey(namespace, id)]
	s.mu.RUnlock()
	if c == nil || c.get().ID != id {
		return nil, errs.New(errs.NotFound, "no such container in namespace %s: %s", orElse(namespace, spec.DefaultNamespace), id)
	}
	return c, nil
}

// lockGiven finds a container and takes its op.
func (s *Set) lockGiven(ctx context.Context, namespace, id string) (*container, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return nil, err
	}
	if err := c.op.Lock(ctx); err != nil {
		return nil, fmt.Errorf("container %s is busy: %w", id, err)
	}
	if c.isGone() {
		c.op.Unlock()
		return nil, errs.New(errs.NotFound, "no such container in namespace %s: %s", namespace, id)
	}
	return c, nil
}

// Given returns one container as clients see it; the node's own are in the
// default namespace. What it holds must not be changed.
func (s *Set) Given(ctx context.Context, namespace, id string) (spec.Given, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return spec.Given{}, err
	}
	return s.givenOf(ctx, c), nil
}

// Givens returns the containers of a namespace, or with "" all there are, by
// their ids.
func (s *Set) Givens(ctx context.Context, namespace string) ([]spec.Given, error) {
	var list []spec.Given
	for _, c := range s.in(namespace) {
		list = append(list, s.givenOf(ctx, c))
	}
	return list, nil
}

// in lists the containers of a namespace by their keys, or with "" all.
func (s *Set) in(namespace string) []*container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*container, 0, len(s.containers))
	for _, key := range slices.Sorted(maps.Keys(s.containers)) {
		c := s.containers[key]
		if namespace == "" || orElse(c.get().Namespace, spec.DefaultNamespace) == namespace {
			list = append(list, c)
		}
	}
	return list
}

func (s *Set) givenOf(ctx context.Context, c *container) spec.Given {
	if g := c.given.Load(); g != nil {
		return *g
	}
	return s.nativeGiven(ctx, c)
}

// UpdateGiven changes a container's data: all but what it is and whose. Of a
// container that the node made only labels can change, else it is
// errs.Conflict. Labels that say whether it is to run are heeded at once.
func (s *Set) UpdateGiven(ctx context.Context, namespace, id string, change func(*spec.Given) error) (spec.Given, error) {
	c, err := s.lockGiven(ctx, namespace, id)
	if err != nil {
		return spec.Given{}, err
	}
	err = s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		if c.given.Load() == nil {
			return s.updateNative(ctx, c, change)
		}
		return s.updateGiven(ctx, c, change)
	})
	if err != nil {
		return spec.Given{}, fmt.Errorf("update container %s: %w", id, err)
	}
	return s.givenOf(ctx, c), nil
}

func (s *Set) updateGiven(ctx context.Context, c *container, change func(*spec.Given) error) error {
	before, old := c.given.Load(), c.get()
	next := copyGiven(before)
	if err := change(&next); err != nil {
		return err
	}
	next.Namespace, next.ID, next.Created, next.Runtime = before.Namespace, before.ID, before.Created, before.Runtime
	next.Owned = before.Owned
	next.Updated = time.Now().UTC()
	view := s.wear(c, &next, viewOf(&next))
	if err := s.db.write(ctx, c); err != nil {
		s.wear(c, before, old)
		return err
	}
	s.publish(view, "update", "snapshotKey", next.SnapshotKey)
	return s.heed(ctx, c, old, view)
}

// wear gives the container what its client says of it, as given and in the
// view made of that. How it fares stays.
func (s *Set) wear(c *container, g *spec.Given, made *spec.Container) *spec.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name := c.name(); name != made.Name && s.names[name] == c.id {
		delete(s.names, name)
	}
	c.mu.Lock()
	c.given.Store(g)
	view := c.changeLocked(func(c *spec.Container) {
		state := c.State
		*c = *made
		state.StoppedBy, state.RestartCount = made.State.StoppedBy, made.State.RestartCount
		c.State = state
	})
	c.mu.Unlock()
	s.nameLocked(c)
	return view
}

func copyGiven(g *spec.Given) spec.Given {
	next := *g
	next.Labels, next.Extensions = maps.Clone(g.Labels), maps.Clone(g.Extensions)
	return next
}

// RemoveGiven takes away a container that has no task; what its client made
// for it, its snapshot above all, is left. errs.Conflict: it has a task. An ended
// one of a pod's container goes with it.
func (s *Set) RemoveGiven(ctx context.Context, namespace, id string) error {
	c, err := s.lockGiven(ctx, namespace, id)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		g, t := c.given.Load(), c.task.Load()
		if t != nil && (!g.Owned || t.live()) || busy(c.status()) && g == nil {
			return errs.New(errs.Conflict, "container %s has a task: delete that before", id)
		}
		c.callOff()
		return s.remove(ctx, c, true)
	})
}
