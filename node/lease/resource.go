package lease

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/base/kv"
)

// Resource is something that can be kept, by its kind and its name in the
// namespace.
type Resource struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
}

// The kinds, and Snapshots. Leases are resources of the collector only.
const (
	Content    = "content"
	Ingests    = "ingests"
	Images     = "images"
	Containers = "containers"
	Sandboxes  = "sandboxes"
	Leases     = "leases"

	snapshots = "snapshots"
)

// Snapshots is the kind of a snapshotter's snapshots.
func Snapshots(snapshotter string) string { return snapshots + "/" + snapshotter }

// Snapshotter is the name of the snapshotter, of a kind that Snapshots gave.
func Snapshotter(kind string) (string, bool) {
	name, ok := strings.CutPrefix(kind, snapshots+"/")
	return name, ok && name != "" && !strings.Contains(name, "/")
}

const (
	// maxID bounds names that become keys of records.
	maxID = 16 << 10
)

// check says whether a lease can hold r, with the kinds of errors that clients
// know.
func (r Resource) check() error {
	if r.ID == "" || len(r.ID) > maxID {
		return errs.New(errs.Invalid, "resource id of %d bytes: want 1 to %d", len(r.ID), maxID)
	}
	kind, _, _ := strings.Cut(r.Kind, "/")
	switch kind {
	case Content, Ingests, Images:
		if kind != r.Kind {
			return errs.New(errs.Invalid, "invalid resource type %.80s", r.Kind)
		}
	case snapshots:
		if _, ok := Snapshotter(r.Kind); !ok {
			return errs.New(errs.Invalid, "invalid snapshot resource type %.80s", r.Kind)
		}
	default:
		return errs.New(errs.Unsupported, "resource type %.80s not supported", r.Kind)
	}
	if kind == Content {
		if _, err := digest.Parse(r.ID); err != nil {
			return errs.New(errs.Invalid, "invalid content resource id %.120s: %w", r.ID, err)
		}
	}
	return nil
}

// Add has a lease hold a resource, which need not be there yet. NotFound: no
// lease. Invalid, Unsupported: no such kind.
func (s *Set) Add(ctx context.Context, namespace, id string, r Resource) error {
	return s.add(namespace, id, r, func(l Lease, fn func(*kv.Tx) error) error { return s.store(ctx, l, fn) })
}

// AddSoon is Add that becomes durable with the next change of the records,
// which the caller is about to make.
func (s *Set) AddSoon(namespace, id string, r Resource) error {
	return s.add(namespace, id, r, s.storeSoon)
}

func (s *Set) storeSoon(_ Lease, fn func(*kv.Tx) error) error {
	s.DB.Later(fn)
	return nil
}

func (s *Set) add(namespace, id string, r Resource, store func(Lease, func(*kv.Tx) error) error) error {
	if err := r.check(); err != nil {
		return err
	}
	defer s.Hold(namespace, r)()
	key := leaseKey{namespace, id}
	l, known, err := s.change(key, r, true)
	if err != nil || known {
		return err
	}
	err = store(l, func(tx *kv.Tx) error {
		if tx.Get(bucket, key.record()) == nil {
			return nil // deleted meanwhile
		}
		return kv.PutJSON(tx, resourceBucket, recordOf(key, r), r)
	})
	if err != nil {
		_, _, _ = s.change(key, r, false)
		return fmt.Errorf("lease %.80q: add %s %.80s: %w", id, r.Kind, r.ID, err)
	}
	return nil
}

// change has a lease in memory hold a resource, or not, and says whether it
// did so before.
func (s *Set) change(key leaseKey, r Resource, holds bool) (l Lease, before bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.leases[key]
	if of == nil || !of.ready {
		return Lease{}, false, missing(key.id)
	}
	before = of.resources[r]
	if holds {
		of.resources[r] = true
	} else {
		delete(of.resources, r)
	}
	return of.Lease, before, nil
}

// Drop has a lease let go of a resource; that it does not hold it is no error.
// NotFound: no lease. Invalid, Unsupported: no such kind.
func (s *Set) Drop(ctx context.Context, namespace, id string, r Resource) error {
	err := s.drop(namespace, id, r, func(l Lease, fn func(*kv.Tx) error) error { return s.store(ctx, l, fn) })
	if err == nil {
		s.Trigger()
	}
	return err
}

// DropSoon is Drop of what is over, so that there is nothing to collect. It
// becomes durable as AddSoon does.
func (s *Set) DropSoon(namespace, id string, r Resource) error {
	return s.drop(namespace, id, r, s.storeSoon)
}

func (s *Set) drop(namespace, id string, r Resource, store func(Lease, func(*kv.Tx) error) error) error {
	if err := r.check(); err != nil {
		return err
	}
	key := leaseKey{namespace, id}
	l, known, err := s.change(key, r, false)
	if err != nil || !known {
		return err
	}
	err = store(l, func(tx *kv.Tx) error { return tx.Delete(resourceBucket, recordOf(key, r)) })
	if err != nil {
		_, _, _ = s.change(key, r, true)
		return fmt.Errorf("lease %.80q: drop %s %.80s: %w", id, r.Kind, r.ID, err)
	}
	return nil
}

// Resources lists what a lease holds, by kind and name. NotFound: no lease.
func (s *Set) Resources(namespace, id string) ([]Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[leaseKey{namespace, id}]
	if l == nil || !l.ready {
		return nil, missing(id)
	}
	return l.sorted(), nil
}

func (l *held) sorted() []Resource {
	all := make([]Resource, 0, len(l.resources))
	for r := range l.resources {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Resource) int {
		if c := strings.Compare(a.Kind, b.Kind); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all
}

func recordOf(l leaseKey, r Resource) string { return l.prefix() + r.Kind + "/" + r.ID }
