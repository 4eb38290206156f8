// Package fakesnapshot is a snapshot.Store in memory, for the tests of those
// who use one, and a second opinion for the tests of the drivers.
//
// It keeps each snapshot as the whole tree that it shows, with the bodies of
// all files: what a snapshot changed is found by comparing two trees. Nothing
// is ever mounted: Mount writes the tree into the target folder and Unmount
// reads it back, so it needs no privileges beyond the tree's own. Owners and
// devices that it may not make are left out.
package fakesnapshot

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// Store is the fake. New makes one.
type Store struct {
	// Fail, if set, is asked before each operation, by its method's name, and
	// its error is the operation's.
	Fail func(operation string) error

	mu     sync.Mutex
	byKey  map[snapshot.Key]*held
	mounts map[string]snapshot.Key
}

type held struct {
	snapshot.Info
	depth int
	tree  tree
	base  tree // what the parent shows
}

var _ snapshot.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{byKey: map[snapshot.Key]*held{}, mounts: map[string]snapshot.Key{}}
}

// Keeping returns a function that opens stores by folder: the same folder is
// the same store, as with one that lies on disk.
func Keeping() func(t *testing.T, dir string) snapshot.Store {
	var mu sync.Mutex
	byDir := map[string]*Store{}
	return func(_ *testing.T, dir string) snapshot.Store {
		mu.Lock()
		defer mu.Unlock()
		if byDir[dir] == nil {
			byDir[dir] = New()
		}
		return byDir[dir]
	}
}

// Close forgets nothing: a store can be used again after it, as after a
// restart.
func (s *Store) Close() error { return nil }

// Sync does nothing: there is no power to lose.
func (s *Store) Sync(ctx context.Context) error { return s.enter(ctx, "Sync") }

func (s *Store) enter(ctx context.Context, operation string) error {
	if s.Fail != nil {
		if err := s.Fail(operation); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Prepare makes a writable snapshot.
func (s *Store) Prepare(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error) {
	if err := s.enter(ctx, "Prepare"); err != nil {
		return snapshot.Active{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.make(snapshot.KindActive, key, parent, labels)
	if err != nil {
		return snapshot.Active{}, err
	}
	return snapshot.Active{Info: h.info()}, nil
}

// View makes a snapshot that cannot be changed.
func (s *Store) View(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.View, error) {
	if err := s.enter(ctx, "View"); err != nil {
		return snapshot.View{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.make(snapshot.KindView, key, parent, labels)
	if err != nil {
		return snapshot.View{}, err
	}
	return snapshot.View{Info: h.info()}, nil
}

// make puts a new snapshot that shows what parent shows under key. mu is held.
func (s *Store) make(kind snapshot.Kind, key, parent snapshot.Key, labels map[string]string) (*held, error) {
	if err := key.Check(); err != nil {
		return nil, err
	}
	if _, _, err := snapshot.IDMaps(labels); err != nil {
		return nil, err
	}
	if s.byKey[key] != nil {
		return nil, errs.New(errs.Exists, "snapshot %s exists", key)
	}
	base, depth := emptyTree(), 0
	if parent != "" {
		below := s.byKey[parent]
		switch {
		case below == nil:
			return nil, errs.New(errs.NotFound, "no parent snapshot %s", parent)
		case below.Kind != snapshot.KindCommitted:
			return nil, errs.New(errs.Conflict, "snapshot %s is %s, not committed", parent, below.Kind)
		case below.depth == snapshot.MaxDepth:
			return nil, errs.New(errs.Exhausted, "snapshot %s has %d layers", parent, below.depth)
		}
		base, depth = below.tree, below.depth
	}
	h := &held{
		Info: snapshot.Info{
			Key: key, Parent: parent, Kind: kind, Created: time.Now().UTC(),
			Labels: snapshot.MergeLabels(nil, labels),
		},
		depth: depth + 1, base: base, tree: base,
	}
	s.byKey[key] = h
	return h, nil
}

func (h *held) info() snapshot.Info {
	info := h.Info
	info.Labels = snapshot.MergeLabels(nil, h.Labels)
	return info
}

// get returns a snapshot whose tree is as its mounts are now. mu is held.
func (s *Store) get(key snapshot.Key) (*held, error) {
	h := s.byKey[key]
	if h == nil {
		return nil, errs.New(errs.NotFound, "no snapshot %.140q", string(key))
	}
	if h.Kind != snapshot.KindActive {
		return h, nil
	}
	for target, mounted := range s.mounts {
		if mounted == key {
			now, err := readTree(target)
			if err != nil {
				return nil, err
			}
			h.tree = now
		}
	}
	return h, nil
}

// Commit turns an Active snapshot into a layer.
func (s *Store) Commit(ctx context.Context, name, active snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	if err := s.enter(ctx, "Commit"); err != nil {
		return snapshot.Committed{}, err
	}
	if err := name.Check(); err != nil {
		return snapshot.Committed{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.get(active)
	switch {
	case err != nil:
		return snapshot.Committed{}, err
	case h.Kind != snapshot.KindActive:
		return snapshot.Committed{}, errs.New(errs.Conflict, "snapshot %s is %s, not active", active, h.Kind)
	case s.byKey[name] != nil:
		return snapshot.Committed{}, errs.New(errs.Exists, "snapshot %s exists", name)
	}
	layer := *h
	layer.Key, layer.Kind, layer.Created = name, snapshot.KindCommitted, time.Now().UTC()
	layer.Labels = snapshot.MergeLabels(h.Labels, labels)
	delete(s.byKey, active)
	s.byKey[name] = &layer
	return snapshot.Committed{Info: layer.info()}, nil
}

// Mounts is Unsupported: there is nothing that another process could mount.
func (s *Store) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	if err := s.mountable(ctx, "Mounts", key); err != nil {
		return nil, err
	}
	return nil, errs.New(errs.Unsupported, "a tree in memory cannot be mounted")
}

func (s *Store) mountable(ctx context.Context, operation string, key snapshot.Key) error {
	if err := s.enter(ctx, operation); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.get(key)
	if err == nil && h.Kind == snapshot.KindCommitted {
		err = errs.New(errs.Conflict, "snapshot %s is committed", key)
	}
	return err
}

// Mount writes the tree into the folder target.
func (s *Store) Mount(ctx context.Context, key snapshot.Key, target string) error {
	if err := s.mountable(ctx, "Mount", key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.get(key)
	if err != nil {
		return err
	}
	if err := h.tree.write(target); err != nil {
		return fmt.Errorf("mount snapshot %s: %w", key, err)
	}
	s.mounts[filepath.Clean(target)] = key
	return nil
}

// Unmount reads the tree back and empties the folder.
func (s *Store) Unmount(ctx context.Context, target string) error {
	if err := s.enter(ctx, "Unmount"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	target = filepath.Clean(target)
	key, ok := s.mounts[target]
	if !ok {
		return nil
	}
	if _, err := s.get(key); err != nil && s.byKey[key] != nil {
		return err
	}
	delete(s.mounts, target)
	entries, err := os.ReadDir(target)
	if os.IsNotExist(err) {
		return nil
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(target, e.Name())); err != nil {
			return err
		}
	}
	return err
}

// Stat describes a snapshot.
func (s *Store) Stat(ctx context.Context, key snapshot.Key) (snapshot.Info, error) {
	if err := s.enter(ctx, "Stat"); err != nil {
		return snapshot.Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.byKey[key]; h != nil {
		return h.info(), nil
	}
	return snapshot.Info{}, errs.New(errs.NotFound, "no snapshot %.140q", string(key))
}

// SetLabels lays labels over those of a snapshot.
func (s *Store) SetLabels(ctx context.Context, key snapshot.Key, labels map[string]string) error {
	if err := s.enter(ctx, "SetLabels"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.get(key)
	if err != nil {
		return err
	}
	merged := snapshot.MergeLabels(h.Labels, labels)
	if _, _, err := snapshot.IDMaps(merged); err != nil {
		return err
	}
	h.Labels = merged
	return nil
}

// Remove forgets a snapshot.
func (s *Store) Remove(ctx context.Context, key snapshot.Key) error {
	if err := s.enter(ctx, "Remove"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey[key] == nil {
		return errs.New(errs.NotFound, "no snapshot %.140q", string(key))
	}
	for _, h := range s.byKey {
		if h.Parent == key {
			return errs.New(errs.Conflict, "snapshot %s has the child %s", key, h.Key)
		}
	}
	delete(s.byKey, key)
	return nil
}

// Walk calls fn for each snapshot.
func (s *Store) Walk(ctx context.Context, fn func(snapshot.Info) error) error {
	if err := s.enter(ctx, "Walk"); err != nil {
		return err
	}
	s.mu.Lock()
	var all []snapshot.Info
	for _, h := range s.byKey {
		all = append(all, h.info())
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b snapshot.Info) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	for _, info := range all {
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Usage counts what differs from the parent.
func (s *Store) Usage(ctx context.Context, key snapshot.Key) (snapshot.Usage, error) {
	var u snapshot.Usage
	err := s.compare(ctx, "Usage", key, func(h *held, changed []string) error {
		seen := map[*file]bool{}
		for _, name := range changed {
			if f := h.tree[name]; f != nil && !seen[f] {
				seen[f] = true
				u.Inodes++
				u.Size += int64(len(f.body))
			}
		}
		return nil
	})
	return u, err
}

// Diff writes what differs from the parent as a layer.
func (s *Store) Diff(ctx context.Context, key snapshot.Key, w io.Writer) error {
	return s.compare(ctx, "Diff", key, func(h *held, changed []string) error { return h.tree.writeLayer(w, changed) })
}

// Changes lists what differs from the parent.
func (s *Store) Changes(ctx context.Context, key snapshot.Key) ([]spec.Change, error) {
	var changes []spec.Change
	err := s.compare(ctx, "Changes", key, func(h *held, changed []string) error {
		for _, name := range changed {
			kind := "C"
			switch {
			case h.tree[name] == nil:
				kind = "D"
			case h.base[name] == nil:
				kind = "A"
			}
			changes = append(changes, spec.Change{Kind: kind, Path: "/" + name})
		}
		slices.SortFunc(changes, func(a, b spec.Change) int { return strings.Compare(a.Path, b.Path) })
		return nil
	})
	return changes, err
}

func (s *Store) compare(ctx context.Context, operation string, key snapshot.Key, fn func(*held, []string) error) error {
	if err := s.enter(ctx, operation); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.get(key)
	if err != nil {
		return err
	}
	if h.Kind == snapshot.KindView {
		return fn(h, nil)
	}
	return fn(h, changed(h.base, h.tree))
}
