// Package lease says what of the things that clients make is kept, and has the
// rest removed. It knows names and labels only; what they stand for belongs to
// other rooms, the Owners: content, images, snapshots, containers.
//
// A lease is a name under which a client gathers resources that it wants kept
// while nothing else refers to them. Resources, labels and leases belong to a
// namespace, and so does what they refer to.
//
// A collection marks what can be reached from the roots (see Item), and has the
// owners remove the rest. Nobody has to stop for it: who is about to write down
// something that refers to others, or makes anything, first takes Hold of
// these. What is held when a collection begins counts as a root, and what is
// held later is rescued, with all that it refers to, since a resource goes only
// after those that refer to it.
//
// Bucket "lease" holds the leases under "<namespace>/<id>", bucket
// "lease.resource" what they hold. Leases that expire, as those of nearly all
// clients do, become durable within 100 ms: a crash in between has ended the
// client's call too. Others are durable when the call returns.
//
// Lock order: Set.one, then Set.mu; no owner is called with Set.mu held.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/base/kv"
)

const (
	bucket         = "lease"
	resourceBucket = "lease.resource"
)

// Lease is what a client calls the resources that it wants kept.
type Lease struct {
	Namespace string            `json:"-"`
	ID        string            `json:"-"`
	Labels    map[string]string `json:"labels,omitempty"`
	Created   time.Time         `json:"created"`
}

// Config says what a Set works with.
type Config struct {
	DB *kv.DB
	// Freed hears that a collection has removed something, or that somebody
	// waits for one, who then also waits for it. May be nil.
	Freed func(ctx context.Context) error
	Log   *slog.Logger
}

// Set is the leases of all namespaces, and the collector. Safe for concurrent
// use.
type Set struct {
	Config
	owners  []Owner
	wake    chan struct{}      // holds a token when something may have lost its last reference
	rearm   chan struct{}      // holds a token when something expires sooner than known
	one     chan struct{}      // holds a token while a collection runs
	mu      sync.Mutex         // guards what follows
	leases  map[leaseKey]*held // what is in it does not change, but for resources
	holds   map[node]int
	pass    *pass     // the collection that runs, nil for none
	ended   sync.Cond // a removal has ended
	begun   uint64    // passes
	awaited bool      // somebody waits for the next pass, and for the disk
	last    error     // how the latest pass ended
	next    time.Time // when something that was seen last expires; zero: nothing does
}

type leaseKey struct{ namespace, id string }

// held is a lease and what it holds.
type held struct {
	Lease
	resources map[Resource]bool
	// ready is false while it is being made, or deleted: nobody sees it then,
	// but its ID is taken.
	ready bool
}

// Open loads the leases.
func Open(c Config) (*Set, error) {
	s := &Set{
		Config: c, wake: make(chan struct{}, 1), rearm: make(chan struct{}, 1), one: make(chan struct{}, 1),
		leases: map[leaseKey]*held{}, holds: map[node]int{},
	}
	s.ended.L = &s.mu
	err := c.DB.View(func(tx *kv.Tx) error {
		err := kv.EachJSON(tx, bucket, "", func(key string, l Lease) error {
			l.Namespace, l.ID, _ = strings.Cut(key, "/")
			s.leases[leaseKey{l.Namespace, l.ID}] = &held{Lease: l, resources: map[Resource]bool{}, ready: true}
			return nil
		})
		if err != nil {
			return err
		}
		return kv.EachJSON(tx, resourceBucket, "", func(key string, r Resource) error {
			if l := s.leases[leaseOf(key)]; l != nil {
				l.resources[r] = true
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("open leases: %w", err)
	}
	s.next = s.firstExpiry(time.Time{})
	return s, nil
}

// Own has an owner's resources collected. Call it before the Set is used.
func (s *Set) Own(o Owner) { s.owners = append(s.owners, o) }

// Create makes a lease. Exists: there is one of that ID. Invalid: no ID, or a
// label that is too long.
func (s *Set) Create(ctx context.Context, namespace, id string, labels map[string]string) (Lease, error) {
	if id == "" || len(id) > maxID {
		return Lease{}, errs.New(errs.Invalid, "lease id of %d bytes: want 1 to %d", len(id), maxID)
	}
	if err := CheckLabels(labels); err != nil {
		return Lease{}, fmt.Errorf("lease %.80q: %w", id, err)
	}
	key := leaseKey{namespace, id}
	l := Lease{Namespace: namespace, ID: id, Labels: WithoutEmpty(labels), Created: time.Now().UTC()}
	made := &held{Lease: l, resources: map[Resource]bool{}}
	defer s.Hold(namespace, Resource{Leases, id})() // one of this ID may have expired, and be on the way out
	s.mu.Lock()
	taken := s.leases[key] != nil
	if !taken {
		s.leases[key] = made
	}
	s.mu.Unlock()
	if taken {
		return Lease{}, errs.New(errs.Exists, "lease %.80q: already exists", id)
	}
	err := s.store(ctx, l, func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, key.record(), l) })
	s.mu.Lock()
	made.ready = true
	if err != nil {
		delete(s.leases, key)
	}
	s.mu.Unlock()
	if err != nil {
		return Lease{}, fmt.Errorf("create lease %q: %w", id, err)
	}
	if at, ok := Expires(l.Labels); ok {
		s.expireAt(at)
	}
	return l.clone(), nil
}

// Delete ends a lease; what only it held is collected soon. NotFound: there is
// none.
func (s *Set) Delete(ctx context.Context, namespace, id string) error {
	if err := s.remove(ctx, leaseKey{namespace, id}); err != nil {
		return err
	}
	s.Trigger()
	return nil
}

func (s *Set) remove(ctx context.Context, key leaseKey) error {
	s.mu.Lock()
	l := s.leases[key]
	if l == nil || !l.ready {
		s.mu.Unlock()
		return missing(key.id)
	}
	l.ready = false
	s.mu.Unlock()
	err := s.store(ctx, l.Lease, func(tx *kv.Tx) error { return deleteLease(tx, key) })
	s.mu.Lock()
	l.ready = true
	if err == nil {
		delete(s.leases, key)
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("delete lease %q: %w", key.id, err)
	}
	return nil
}

// deleteLease also deletes what is in no memory: a record that a crash left.
func deleteLease(tx *kv.Tx, key leaseKey) error {
	var all []string
	err := tx.Each(resourceBucket, key.prefix(), func(k string, _ []byte) error {
		all = append(all, k)
		return nil
	})
	for _, k := range all {
		err = errors.Join(err, tx.Delete(resourceBucket, k))
	}
	return errors.Join(err, tx.Delete(bucket, key.record()))
}

// Get returns a lease. NotFound: there is none.
func (s *Set) Get(namespace, id string) (Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[leaseKey{namespace, id}]
	if l == nil || !l.ready {
		return Lease{}, missing(id)
	}
	return l.clone(), nil
}

// List returns the leases of a namespace, by ID.
func (s *Set) List(namespace string) []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Lease
	for key, l := range s.leases {
		if key.namespace == namespace && l.ready {
			all = append(all, l.clone())
		}
	}
	slices.SortFunc(all, func(a, b Lease) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// store writes what belongs to a lease, as durably as that is.
func (s *Set) store(ctx context.Context, l Lease, fn func(*kv.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, temporary := Expires(l.Labels); temporary {
		s.DB.Later(fn)
		return nil
	}
	return s.DB.Update(ctx, fn)
}

// missing is worded as clients know it.
func missing(id string) error {
	return errs.New(errs.NotFound, "lease %.80q: lease does not exist: not found", id)
}

func (l Lease) clone() Lease {
	l.Labels = maps.Clone(l.Labels)
	return l
}

func (k leaseKey) record() string { return k.namespace + "/" + k.id }

// prefix is how the records of a lease's resources begin. With its length
// before it, no ID is the beginning of another.
func (k leaseKey) prefix() string {
	return k.namespace + "/" + strconv.Itoa(len(k.id)) + ":" + k.id + "/"
}

// leaseOf is the lease of a resource's record; of none where it is malformed.
func leaseOf(record string) leaseKey {
	namespace, rest, _ := strings.Cut(record, "/")
	digits, rest, _ := strings.Cut(rest, ":")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n > len(rest) {
		return leaseKey{}
	}
	return leaseKey{namespace, rest[:n]}
}
