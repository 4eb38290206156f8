// Package sandbox keeps what clients call sandboxes: a name that several given
// containers have in common, with what the client says of it, and whether it
// runs.
//
// The containers of a sandbox run as processes of this machine, each with the
// namespaces that its own spec names, so that a sandbox needs no process and
// runs from Start to Stop because its client says so; a reboot stops it. One
// that is a machine of its own is none of these.
//
// Records are in bucket "sandbox" under "<namespace>/<id>" and durable when a
// call returns. What is read comes from memory.
package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

const bucket = "sandbox"

// Sandbox is one sandbox. It does not change: a changed copy takes its place.
type Sandbox struct {
	Namespace  string                 `json:"namespace"`
	ID         string                 `json:"id"`
	Labels     map[string]string      `json:"labels,omitempty"`
	Runtime    string                 `json:"runtime,omitempty"`
	Options    *spec.Opaque           `json:"options,omitempty"`
	Spec       *spec.Opaque           `json:"spec,omitempty"`
	Extensions map[string]spec.Opaque `json:"extensions,omitempty"`
	Controller string                 `json:"controller,omitempty"` // that the client asked for
	Created    time.Time              `json:"created"`
	Updated    time.Time              `json:"updated"`

	State State `json:"state"`
}

// State is how far a sandbox has come in this boot.
type State struct {
	Boot    string    `json:"boot,omitempty"` // empty: its controller has not been asked to make it
	Made    time.Time `json:"made"`
	Started time.Time `json:"started"`
	Stopped time.Time `json:"stopped"`
}

// Runs says whether it has been started and not been stopped.
func (s State) Runs() bool { return !s.Started.IsZero() && s.Stopped.IsZero() }

// Set is the sandboxes of a node.
type Set struct {
	db   *kv.DB
	boot string

	changing sync.Mutex // held by whoever writes, also while the disk is waited for

	mu    sync.Mutex
	byKey map[key]Sandbox
	ended map[key]chan struct{} // of those that somebody waits for; closed when they stop
}

type key struct{ namespace, id string }

func (k key) String() string { return k.namespace + "/" + k.id }

func (s Sandbox) key() key { return key{s.Namespace, s.ID} }

// Open reads the sandboxes that there are. Those of another boot have stopped.
func Open(db *kv.DB, boot string) (*Set, error) {
	s := &Set{db: db, boot: boot, byKey: map[key]Sandbox{}, ended: map[key]chan struct{}{}}
	err := db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, bucket, "", func(_ string, one Sandbox) error {
			if one.State.Boot != boot {
				one.State = State{}
			}
			s.byKey[one.key()] = one
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("sandboxes: %w", err)
	}
	return s, nil
}

// Create adds a sandbox. errs.Exists: the namespace has one of that id.
func (s *Set) Create(ctx context.Context, one Sandbox) (Sandbox, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if _, err := s.Get(one.Namespace, one.ID); err == nil {
		return one, errs.New(errs.Exists, "sandbox %q: already exists", one.ID)
	}
	one.Created = time.Now().UTC()
	one.Updated, one.State = one.Created, State{}
	return one, s.put(ctx, one)
}

// Get gives one sandbox.
func (s *Set) Get(namespace, id string) (Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.byKey[key{namespace, id}]
	if !ok {
		return one, errs.New(errs.NotFound, "sandbox %q: not found", id)
	}
	return one, nil
}

// List gives the sandboxes of a namespace, by id; of "" all.
func (s *Set) List(namespace string) []Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Sandbox
	for _, one := range s.byKey {
		if namespace == "" || one.Namespace == namespace {
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(a, b Sandbox) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ID, b.ID))
	})
	return all
}

// Update changes what is said of a sandbox. What change gets shares its maps
// with the sandbox as it is: they are replaced, not changed.
func (s *Set) Update(ctx context.Context, namespace, id string, change func(*Sandbox) error) (Sandbox, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	was, err := s.Get(namespace, id)
	if err != nil {
		return was, err
	}
	one := was
	if err := change(&one); err != nil {
		return was, err
	}
	one.Namespace, one.ID, one.Created, one.State = was.Namespace, was.ID, was.Created, was.State
	one.Updated = time.Now().UTC()
	return one, s.put(ctx, one)
}

// Delete forgets a sandbox.
func (s *Set) Delete(ctx context.Context, namespace, id string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	one, err := s.Get(namespace, id)
	if err != nil {
		return err
	}
	err = s.db.Update(ctx, func(tx *kv.Tx) error { return tx.Delete(bucket, one.key().String()) })
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, one.key())
	s.wake(one.key())
	return nil
}

// put writes a sandbox down. changing is held.
func (s *Set) put(ctx context.Context, one Sandbox) error {
	err := s.db.Update(ctx, func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, one.key().String(), one) })
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", one.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byKey[one.key()] = one
	if !one.State.Stopped.IsZero() {
		s.wake(one.key())
	}
	return nil
}

// wake tells those who wait for a sandbox to stop. mu is held.
func (s *Set) wake(k key) {
	if ended, ok := s.ended[k]; ok {
		close(ended)
		delete(s.ended, k)
	}
}
