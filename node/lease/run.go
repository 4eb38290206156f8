package lease

import (
	"context"
	"math"
	"time"
)

const (
	// settle is how long a collection waits for more to come: what one command
	// of a client deletes goes in one pass.
	settle = 100 * time.Millisecond
	// share of the time that collecting may take.
	share = 50
	// idle is how often a pass looks where nothing has asked for one.
	idle = time.Hour
)

// Trigger has a collection run soon.
func (s *Set) Trigger() { poke(s.wake) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run collects when something was deleted or has expired, until ctx is done.
// What cannot be removed is told in the log.
func (s *Set) Run(ctx context.Context) error {
	for {
		if err := s.wait(ctx); err != nil {
			return err
		}
		if err := pause(ctx, settle); err != nil {
			return err
		}
		drain(s.wake)
		began := time.Now()
		if err := s.collectFrom(ctx, math.MaxUint64); err != nil && ctx.Err() == nil && s.Log != nil {
			s.Log.WarnContext(ctx, "not all that nothing refers to was collected", "err", err)
		}
		if err := pause(ctx, share*time.Since(began)); err != nil {
			return err
		}
	}
}

// wait returns when there is something to do.
func (s *Set) wait(ctx context.Context) error {
	for {
		s.mu.Lock()
		next := s.next
		s.mu.Unlock()
		after := idle
		if !next.IsZero() {
			after = min(after, max(time.Until(next), 0))
		}
		timer := time.NewTimer(after)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-s.wake:
			timer.Stop()
			return nil
		case <-timer.C:
			return nil
		case <-s.rearm:
			timer.Stop()
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func drain(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// expireAt has the collector look at that time.
func (s *Set) expireAt(at time.Time) {
	s.mu.Lock()
	s.next = sooner(s.next, at)
	s.mu.Unlock()
	poke(s.rearm)
}

// firstExpiry is when the next lease ends after a moment. mu is held.
func (s *Set) firstExpiry(after time.Time) time.Time {
	var next time.Time
	for _, l := range s.leases {
		if at, ok := Expires(l.Labels); ok && at.After(after) {
			next = sooner(next, at)
		}
	}
	return next
}

// leases are the collector's own resources: roots, until they expire.
type leases struct{ set *Set }

// Items implements Owner.
func (l leases) Items(_ context.Context, fn func(Item)) error {
	l.set.mu.Lock()
	var all []Item
	for key, held := range l.set.leases {
		if !held.ready {
			continue
		}
		all = append(all, Item{
			Namespace: key.namespace, Resource: Resource{Leases, key.id}, Labels: held.Labels, Refs: held.sorted(), Root: true,
		})
	}
	l.set.mu.Unlock()
	for _, i := range all {
		fn(i)
	}
	return nil
}

// Remove implements Owner.
func (l leases) Remove(ctx context.Context, namespace string, r Resource) error {
	return l.set.remove(ctx, leaseKey{namespace, r.ID})
}
