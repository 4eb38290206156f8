// Package snapshottest checks that a driver of node/snapshot keeps what the
// interface promises. Every driver and the fake run it.
package snapshottest

import (
	"context"
	"errors"
	"os"
	"testing"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Open opens the store that lives in dir, a folder that was empty the first
// time. The suite closes a store before it opens the same folder again.
type Open func(t *testing.T, dir string) snapshot.Store

// Suite runs every check. It needs root.
func Suite(t *testing.T, open Open) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes devices, owners and mounts")
	}
	for name, check := range map[string]func(*env){
		"Keys": keys, "Parents": parents, "Commit": commits, "Remove": removes,
		"Labels": labels, "Walk": walks, "Usage": usage, "Views": views, "Canceled": canceled,
		"OneWinner": oneWinner, "Reopen": reopen, "Sync": syncs, "Depth": depth,
		"Content": content, "Whiteouts": whiteouts, "Replaced": replaced, "Implied": implied, "Hidden": hidden,
		"OverlayXattrs": overlayXattrs, "Parallel": parallel, "IngestLife": ingestLife,
		"Hostile": hostile, "Broken": broken, "Symlinks": symlinks,
		"Diff": diff, "DiffOfLayer": diffOfLayer, "Changes": changes, "Mounts": mounts, "Lost": lost,
	} {
		t.Run(name, func(t *testing.T) {
			e := &env{T: t, dir: t.TempDir(), open: open}
			e.store = open(t, e.dir)
			t.Cleanup(func() {
				if err := e.store.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			check(e)
		})
	}
}

// env is one check's store.
type env struct {
	*testing.T
	store snapshot.Store
	dir   string
	open  Open
}

func (e *env) ctx() context.Context { return e.Context() }

// must ends the check on an unexpected error.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// want reports an error that is not of the kind.
func (e *env) want(kind errs.Kind, err error, doing string) {
	e.Helper()
	if !errors.Is(err, kind) {
		e.Errorf("%s: got error %v, want kind %q", doing, err, kind)
	}
}

func (e *env) prepare(key, parent snapshot.Key) {
	e.Helper()
	_, err := e.store.Prepare(e.ctx(), key, parent, nil)
	e.must(err)
}

// layer ingests and commits a layer.
func (e *env) layer(name, parent snapshot.Key, entries ...entry) {
	e.Helper()
	in, err := e.store.Ingest(e.ctx(), archive(e.T, entries...))
	e.must(err)
	_, err = in.Commit(e.ctx(), name, parent, nil)
	e.must(err)
}

// mount mounts key on a new folder until the check ends or unmount is called.
func (e *env) mount(key snapshot.Key) (target string, unmount func()) {
	e.Helper()
	target = e.TempDir()
	e.must(e.store.Mount(e.ctx(), key, target))
	done := false
	unmount = func() {
		if !done {
			done = true
			if err := e.store.Unmount(context.WithoutCancel(e.Context()), target); err != nil {
				e.Errorf("unmount: %v", err)
			}
		}
	}
	e.Cleanup(unmount)
	return target, unmount
}

// change runs fn on the mounted tree of an Active snapshot.
func (e *env) change(key snapshot.Key, fn func(root string)) {
	e.Helper()
	target, unmount := e.mount(key)
	fn(target)
	unmount()
}

// look returns the tree that a View of the committed snapshot shows.
func (e *env) look(committed snapshot.Key) tree {
	e.Helper()
	const key = "look"
	_, err := e.store.View(e.ctx(), key, committed, nil)
	e.must(err)
	target, unmount := e.mount(key)
	seen := readTree(e.T, target)
	unmount()
	e.must(e.store.Remove(e.ctx(), key))
	return seen
}
