// Package namespace keeps the names under which several engines share one node,
// each with things of its own, and the labels that they are given.
//
// A namespace comes to be when something is first put into it, or when it is
// asked for. It is a name and nothing more: what is in it is other rooms'. One
// can be deleted only while it is empty, and that of the node's own containers
// never. Records are in bucket "namespace"; what is read comes from memory.
package namespace

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

const bucket = "namespace"

// Namespace is one name, and its labels.
type Namespace struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Holdings says in words what is still in a namespace, such as "images".
type Holdings func(ctx context.Context, namespace string) ([]string, error)

// Set is the namespaces of one node.
type Set struct {
	db       *kv.DB
	holdings Holdings

	changing sync.Mutex // held by whoever writes, also while the disk is waited for

	mu     sync.RWMutex
	byName map[string]Namespace
}

// Open reads the namespaces that there are.
func Open(ctx context.Context, db *kv.DB, holdings Holdings) (*Set, error) {
	s := &Set{db: db, holdings: holdings, byName: map[string]Namespace{}}
	err := db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, bucket, "", func(_ string, n Namespace) error {
			s.byName[n.Name] = n
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("namespaces: %w", err)
	}
	return s, s.Ensure(ctx, spec.DefaultNamespace)
}

// Ensure makes a namespace if there is none of that name.
func (s *Set) Ensure(ctx context.Context, name string) error {
	if _, ok := s.Get(name); ok {
		return nil
	}
	err := s.Create(ctx, Namespace{Name: name})
	if errs.KindOf(err) == errs.Exists {
		return nil
	}
	return err
}

// Create makes a namespace. errs.Exists: there is one of that name.
func (s *Set) Create(ctx context.Context, n Namespace) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if _, ok := s.Get(n.Name); ok {
		return errs.New(errs.Exists, "namespace %q: already exists", n.Name)
	}
	return s.put(ctx, n)
}

// Get gives the namespace of a name.
func (s *Set) Get(name string) (Namespace, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.byName[name]
	return n, ok
}

// List gives all namespaces, by name.
func (s *Set) List() []Namespace {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.byName), func(a, b Namespace) int { return cmp.Compare(a.Name, b.Name) })
}

// SetLabels changes the labels of a namespace, of which change gets a copy.
func (s *Set) SetLabels(ctx context.Context, name string, change func(labels map[string]string)) (Namespace, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	n, ok := s.Get(name)
	if !ok {
		return n, errs.New(errs.NotFound, "namespace %q: not found", name)
	}
	n.Labels = maps.Clone(n.Labels)
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	change(n.Labels)
	return n, s.put(ctx, n)
}

// put writes a namespace down. changing is held.
func (s *Set) put(ctx context.Context, n Namespace) error {
	err := s.db.Update(ctx, func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, n.Name, n) })
	if err != nil {
		return fmt.Errorf("namespace %q: %w", n.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byName[n.Name] = n
	return nil
}

// Delete takes a namespace away. errs.Conflict: there is something in it.
func (s *Set) Delete(ctx context.Context, name string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if _, ok := s.Get(name); !ok {
		return errs.New(errs.NotFound, "namespace %q: not found", name)
	}
	if name == spec.DefaultNamespace {
		return errs.New(errs.Conflict, "namespace %q is that of the node's own images and containers", name)
	}
	held, err := s.holdings(ctx, name)
	if err != nil {
		return fmt.Errorf("namespace %q: %w", name, err)
	}
	if len(held) > 0 {
		return errs.New(errs.Conflict, "namespace %q must be empty, but it still has %s: failed precondition", name, strings.Join(held, ", "))
	}
	err = s.db.Update(ctx, func(tx *kv.Tx) error { return tx.Delete(bucket, name) })
	if err != nil {
		return fmt.Errorf("namespace %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byName, name)
	return nil
}
