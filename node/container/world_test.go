package container_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/container/fakecontainer"
	"berth/node/network"
	"berth/node/snapshot"
	"berth/spec"
)

// world is everything that outlives a node: what the other rooms hold, the
// processes, and the folders. Each step that a Set takes in it can be made to
// fail, or to be the last one before a crash.
type world struct {
	t       testing.TB
	dir     string
	runtime *fakecontainer.Runtime
	log     *lockedBuffer

	mu        sync.Mutex
	images    map[string]spec.Image
	snapshots map[snapshot.Key]bool
	mounts    map[string]snapshot.Key
	roots     map[string]bool // mounted for given containers
	others    map[string]bool // those of roots with file systems that are not the store's
	spaces    map[string]bool
	attached  map[string]network.AttachRequest
	volumes   map[string]*volume
	events    []spec.Event
	oom       map[string]bool

	steps   []string
	failAt  int // number of the step that fails; 0 for none
	crashAt int // number of the step before which the node crashes
	crashed string
	resized string
	boot    string
	node    *node
}

type volume struct {
	spec.Volume
	mounted map[string]bool
}

// node is one life of a Set.
type node struct {
	*container.Set
	db     *kv.DB
	cancel context.CancelFunc
}

var errInjected = errs.New(errs.Unavailable, "injected")

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, dir: t.TempDir(), runtime: fakecontainer.New(), log: &lockedBuffer{}, boot: "boot-1",
		images:    map[string]spec.Image{},
		snapshots: map[snapshot.Key]bool{"sha256:chain": true},
		mounts:    map[string]snapshot.Key{},
		roots:     map[string]bool{},
		others:    map[string]bool{},
		spaces:    map[string]bool{},
		attached:  map[string]network.AttachRequest{},
		volumes:   map[string]*volume{},
		oom:       map[string]bool{},
	}
	w.images["busybox"] = spec.Image{ID: "sha256:busybox", Manifest: "sha256:m", Platform: "linux/amd64", Config: spec.ImageConfig{
		Command: []string{"/bin/sleep", "1000"}, Labels: map[string]string{"of": "image"}, ExposedPorts: []spec.Exposed{"80"},
	}}
	w.runtime.Exited = func(x container.Exit) {
		w.mu.Lock()
		n := w.node
		w.mu.Unlock()
		if n != nil {
			n.Exited(x)
		}
	}
	w.runtime.Fail = w.step
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	return w
}

// open starts a node on the world.
func (w *world) open() *node {
	w.t.Helper()
	db, err := kv.Open(filepath.Join(w.dir, "db"))
	w.ok(err)
	host, err := bundle.Detect()
	w.ok(err)
	ctx, cancel := context.WithCancel(w.t.Context())
	set, err := container.Open(ctx, container.Config{
		DB: db, Root: filepath.Join(w.dir, "root"), State: filepath.Join(w.dir, "state"), Boot: w.boot,
		Images: images{w}, Snapshots: snapshots{w}, Networks: networks{w}, Volumes: volumes{w},
		Events: events{w}, Meter: meter{w}, Processes: w.runtime.Owner(),
		Runtimes: map[string]container.Runtime{"fake": w.runtime}, Runtime: "fake",
		Host: host, CgroupParent: "/berth-test", Roots: taskRoots{w}, Layers: w.layer, Shims: w.shim, Snapshotter: "fakefs",
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	w.ok(err)
	n := &node{Set: set, db: db, cancel: cancel}
	w.mu.Lock()
	survivors := w.runtime.Survivors()
	w.node = n
	w.mu.Unlock()
	w.ok(set.Recover(ctx, survivors))
	w.sweep(set)
	return n
}

// sweep does what node/collect does after a start.
func (w *world) sweep(set *container.Set) {
	found, err := set.Found(w.t.Context())
	w.ok(err)
	for _, id := range found {
		if !set.Claims(id) {
			w.ok(set.Discard(w.t.Context(), id))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.spaces {
		if !set.Claims(id) {
			delete(w.spaces, id)
		}
	}
}

// shut ends the node in good order.
func (w *world) shut() {
	w.t.Helper()
	w.mu.Lock()
	n := w.node
	w.node = nil
	w.mu.Unlock()
	w.ok(n.Close())
	n.cancel()
	w.ok(n.db.Close())
}

// crash makes the world as it was when the crash came and drops the node.
func (w *world) crash() {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	if w.crashed == "" {
		w.freeze()
	}
	w.mu.Unlock()
	w.shut()
	for _, name := range []string{"db", "root", "state"} {
		w.ok(os.RemoveAll(filepath.Join(w.dir, name)))
		err := os.Rename(filepath.Join(w.crashed, name), filepath.Join(w.dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Fatal(err)
		}
	}
	w.mu.Lock()
	w.crashed, w.crashAt, w.steps = "", 0, nil
	w.mu.Unlock()
}

// freeze keeps the folders as they are: nothing that the node does from now on counts.
func (w *world) freeze() {
	w.crashed = w.t.TempDir()
	for _, name := range []string{"root", "state"} {
		if from := filepath.Join(w.dir, name); exists(from) {
			w.ok(copyTree(filepath.Join(w.crashed, name), from))
		}
	}
	db, err := os.ReadFile(filepath.Join(w.dir, "db"))
	w.ok(err)
	w.ok(os.WriteFile(filepath.Join(w.crashed, "db"), db, 0o600))
}

// copyTree copies folders and files; others may come and go meanwhile.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		rel, _ := filepath.Rel(from, path)
		if err != nil || d.IsDir() {
			return errors.Join(err, os.MkdirAll(filepath.Join(to, rel), 0o755))
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		return os.WriteFile(filepath.Join(to, rel), content, 0o644)
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// step is taken before anything changes in the world.
func (w *world) step(op, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.crashed != "" {
		return errInjected
	}
	w.steps = append(w.steps, op)
	switch len(w.steps) {
	case w.failAt:
		return errInjected
	case w.crashAt:
		w.freeze()
		return errInjected
	}
	return nil
}

// count begins to count the steps.
func (w *world) count(failAt, crashAt int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps, w.failAt, w.crashAt = nil, failAt, crashAt
}

func (w *world) taken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.steps)
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// left is all that exists on behalf of containers.
func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := w.runtime.Left()
	for key := range w.snapshots {
		if key != "sha256:chain" && !strings.HasPrefix(string(key), "client/") {
			left = append(left, fmt.Sprintf("snapshot %.12s", key))
		}
	}
	for target := range w.mounts {
		left = append(left, "mount "+target)
	}
	for target := range w.roots {
		left = append(left, "root "+target)
	}
	for id := range w.spaces {
		left = append(left, fmt.Sprintf("namespace %.12s", id))
	}
	for id := range w.attached {
		left = append(left, fmt.Sprintf("endpoint %.12s", id))
	}
	for name, v := range w.volumes {
		if v.Anonymous || len(v.UsedBy) > 0 || len(v.mounted) > 0 {
			left = append(left, "volume "+name)
		}
	}
	for _, pattern := range []string{"state/containers/*", "state/tasks/*", "root/logs/*"} {
		found, _ := filepath.Glob(filepath.Join(w.dir, pattern))
		left = append(left, found...)
	}
	slices.Sort(left)
	return left
}

// wantNothing fails where something is left.
func (w *world) wantNothing() {
	w.t.Helper()
	if left := w.left(); len(left) > 0 {
		w.t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
}

// actions are those that the events tell of, of one kind of things.
func (w *world) actions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, e := range w.events {
		list = append(list, e.Action)
	}
	return list
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
