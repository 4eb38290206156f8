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
	if err := r.check(); err != nil {
		return err
	}
	defer s.Hold(namespace, r)()
	key := leaseKey{namespace, id}
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	l := s.leases[key]
	known := l != nil && l.resources[r]
	s.mu.Unlock()
	switch {
	case l == nil:
		return missing(id)
	case known:
		return nil
	}
	err := s.store(ctx, l.Lease, func(tx *kv.Tx) error { return kv.PutJSON(tx, resourceBucket, recordOf(key, r), r) })
	if err != nil {
		return fmt.Errorf("lease %q: add %s %s: %w", id, r.Kind, r.ID, err)
	}
	s.mu.Lock()
	l.resources[r] = true
	s.mu.Unlock()
	return nil
}

// Drop has a lease let go of a resource; that it does not hold it is no error.
// NotFound: no lease. Invalid, Unsupported: no such kind.
func (s *Set) Drop(ctx context.Context, namespace, id string, r Resource) error {
	if err := r.check(); err != nil {
		return err
	}
	key := leaseKey{namespace, id}
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	l := s.leases[key]
	known := l != nil && l.resources[r]
	s.mu.Unlock()
	switch {
	case l == nil:
		return missing(id)
	case !known:
		return nil
	}
	err := s.store(ctx, l.Lease, func(tx *kv.Tx) error { return tx.Delete(resourceBucket, recordOf(key, r)) })
	if err != nil {
		return fmt.Errorf("lease %q: drop %s %s: %w", id, r.Kind, r.ID, err)
	}
	s.mu.Lock()
	delete(l.resources, r)
	s.mu.Unlock()
	s.Trigger()
	return nil
}

// Resources lists what a lease holds, by kind and name. NotFound: no lease.
func (s *Set) Resources(namespace, id string) ([]Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[leaseKey{namespace, id}]
	if l == nil {
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
