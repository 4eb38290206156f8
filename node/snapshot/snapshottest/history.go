package snapshottest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/node/snapshot"
)

// RandomHistory has a driver and a model go through the same random
// operations: layers are ingested, trees cloned, changed, committed, looked
// at and removed, the store closed and opened. Both must answer alike, and
// end with the same trees, changes and diffs.
//
// What drivers need not agree on is left out: writing to one of several hard
// links of a layer, which overlayfs separates; moving a folder of a layer,
// which it refuses; and touching a file without changing it. A diff may say
// that a folder is opaque or that all in it was deleted: where it says the
// former it is compared by what it does, else byte by byte.
//
// BERTH_HISTORIES says how many histories to try; a failure names its own.
func RandomHistory(t *testing.T, model, driver Open) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes devices, owners and mounts")
	}
	histories := 2
	if n, err := strconv.Atoi(os.Getenv("BERTH_HISTORIES")); err == nil {
		histories = n
	}
	for seed := range histories {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := &history{
				T: t, random: rand.New(rand.NewPCG(uint64(seed), 7)), //nolint:gosec // to be repeated
				kinds: map[snapshot.Key]snapshot.Kind{}, parent: map[snapshot.Key]snapshot.Key{}, own: map[snapshot.Key]map[string]bool{},
			}
			for _, open := range []Open{model, driver} {
				e := &env{T: t, dir: t.TempDir(), open: open}
				e.store = open(t, e.dir)
				h.envs = append(h.envs, e)
			}
			t.Cleanup(func() {
				for _, e := range h.envs {
					if err := e.store.Close(); err != nil {
						t.Errorf("close: %v", err)
					}
				}
				if t.Failed() {
					t.Logf("history %d:\n%s", seed, strings.Join(h.log, "\n"))
				}
			})
			for range 120 {
				h.step()
				if t.Failed() {
					return
				}
			}
			h.reopen()
			for key := range h.kinds {
				h.check(key)
			}
		})
	}
}

// history is the state that both stores are in.
type history struct {
	*testing.T
	random *rand.Rand
	envs   []*env // the model and the driver
	log    []string

	count  int // makes names, contents and times unique
	kinds  map[snapshot.Key]snapshot.Kind
	parent map[snapshot.Key]snapshot.Key
	own    map[snapshot.Key]map[string]bool // paths that an Active snapshot made itself
}

func (h *history) step() {
	do := []func(){h.ingest, h.ingest, h.prepare, h.prepare, h.change, h.change, h.change, h.change, h.commit, h.view, h.remove, h.checkOne, h.checkOne, h.reopen}
	do[h.random.IntN(len(do))]()
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// both does the same on both stores and compares how it went.
func (h *history) both(do func(e *env) error) bool {
	h.Helper()
	var kinds []errs.Kind
	var all []error
	for _, e := range h.envs {
		err := do(e)
		all = append(all, err)
		if err == nil {
			kinds = append(kinds, "")
			continue
		}
		kinds = append(kinds, errs.KindOf(err))
	}
	if kinds[0] != kinds[1] {
		h.Fatalf("the model says %v, the driver %v", all[0], all[1])
	}
	return all[0] == nil
}

func (h *history) name(prefix string) snapshot.Key {
	h.count++
	return snapshot.Key(fmt.Sprintf("%s%d", prefix, h.count))
}

// pick returns a key of the kind; "" if there is none, and sometimes so.
func (h *history) pick(kind snapshot.Kind) snapshot.Key {
	var keys []snapshot.Key
	for _, key := range slices.Sorted(maps.Keys(h.kinds)) {
		if h.kinds[key] == kind {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 || h.random.IntN(12) == 0 {
		return ""
	}
	// Young ones more often, so that chains grow.
	return keys[max(h.random.IntN(len(keys)), h.random.IntN(len(keys)))]
}

func (h *history) put(key, parent snapshot.Key, kind snapshot.Kind) {
	h.kinds[key], h.parent[key] = kind, parent
}

func (h *history) ingest() {
	parent, name := h.pick(snapshot.KindCommitted), h.name("layer")
	entries := h.randomLayer(parent)
	h.note("ingest %s on %q: %s", name, parent, describeEntries(entries))
	h.both(func(e *env) error {
		in, err := e.store.Ingest(e.ctx(), archive(h.T, entries...))
		if err != nil {
			return err
		}
		_, err = in.Commit(e.ctx(), name, parent, map[string]string{"n": string(name)})
		return err
	})
	h.put(name, parent, snapshot.KindCommitted)
}

func (h *history) prepare() {
	parent, key := h.pick(snapshot.KindCommitted), h.name("work")
	h.note("prepare %s on %q", key, parent)
	h.both(func(e *env) error {
		_, err := e.store.Prepare(e.ctx(), key, parent, nil)
		return err
	})
	h.put(key, parent, snapshot.KindActive)
	h.own[key] = map[string]bool{}
}

func (h *history) commit() {
	key, name := h.pick(snapshot.KindActive), h.name("commit")
	if key == "" {
		return
	}
	h.note("commit %s as %s", key, name)
	h.both(func(e *env) error {
		_, err := e.store.Commit(e.ctx(), name, key, map[string]string{"of": string(key)})
		return err
	})
	h.put(name, h.parent[key], snapshot.KindCommitted)
	delete(h.kinds, key)
	delete(h.own, key)
}

func (h *history) view() {
	parent, key := h.pick(snapshot.KindCommitted), h.name("view")
	h.note("view %s of %q", key, parent)
	h.both(func(e *env) error {
		_, err := e.store.View(e.ctx(), key, parent, nil)
		return err
	})
	h.put(key, parent, snapshot.KindView)
}

// remove tries any key; what has children stays.
func (h *history) remove() {
	keys := slices.Sorted(maps.Keys(h.kinds))
	if len(keys) < 5 {
		return
	}
	key := keys[h.random.IntN(len(keys))]
	h.note("remove %s", key)
	if h.both(func(e *env) error { return e.store.Remove(e.ctx(), key) }) {
		delete(h.kinds, key)
		delete(h.parent, key)
		delete(h.own, key)
	}
}

func (h *history) reopen() {
	h.note("reopen")
	for _, e := range h.envs {
		e.restart()
	}
	model, driver := h.envs[0].all(), h.envs[1].all()
	same := slices.EqualFunc(model, driver, func(a, b snapshot.Info) bool {
		return a.Key == b.Key && a.Parent == b.Parent && a.Kind == b.Kind && maps.Equal(a.Labels, b.Labels)
	})
	if !same {
		h.Errorf("snapshots of the driver\n got %+v\nwant %+v", driver, model)
	}
}

func (h *history) checkOne() {
	keys := slices.Sorted(maps.Keys(h.kinds))
	if len(keys) > 0 {
		h.check(keys[h.random.IntN(len(keys))])
	}
}

// check compares all that is to be known of a snapshot.
func (h *history) check(key snapshot.Key) {
	h.note("check %s", key)
	if h.kinds[key] != snapshot.KindCommitted {
		h.mounted(key, func([]string) {})
	} else {
		same(h.T, h.envs[1].look(key), h.envs[0].look(key))
	}
	var changes []string
	for _, e := range h.envs {
		all, err := e.store.Changes(e.ctx(), key)
		e.must(err)
		changes = append(changes, strings.ReplaceAll(fmt.Sprint(all), "} {", "}\n {"))
	}
	if changes[0] != changes[1] {
		h.Errorf("changes of %s:\n got %s\nwant %s", key, changes[1], changes[0])
	}
	h.checkDiff(key)
	if h.Failed() {
		h.Fatalf("%s differs", key)
	}
}

func (h *history) checkDiff(key snapshot.Key) {
	var diffs [3]bytes.Buffer
	for i, e := range []*env{h.envs[0], h.envs[1], h.envs[1]} {
		e.must(e.store.Diff(e.ctx(), key, &diffs[i]))
	}
	if !bytes.Equal(diffs[1].Bytes(), diffs[2].Bytes()) {
		h.Errorf("two diffs of %s differ", key)
	}
	if h.kinds[key] == snapshot.KindView {
		return
	}
	if !bytes.Contains(diffs[1].Bytes(), []byte(".wh..wh..opq")) {
		if !bytes.Equal(diffs[1].Bytes(), diffs[0].Bytes()) {
			h.Errorf("diff of %s:\n got %s\nwant %s", key, listTar(h.T, diffs[1].Bytes()), listTar(h.T, diffs[0].Bytes()))
		}
		return
	}
	// What the driver's diff does, done by the model.
	e := h.envs[0]
	in, err := e.store.Ingest(e.ctx(), &diffs[1])
	e.must(err)
	const again = "again"
	_, err = in.Commit(e.ctx(), again, h.parent[key], nil)
	e.must(err)
	got := e.look(again)
	e.must(e.store.Remove(e.ctx(), again))
	target, unmount := e.mountSomehow(key, h.kinds[key])
	want := readTree(h.T, target)
	unmount()
	delete(got, ".") // a diff does not hold the root's looks
	delete(want, ".")
	same(h.T, got, want)
	if h.Failed() {
		h.Logf("diff of %s: %s", key, listTar(h.T, diffs[2].Bytes()))
	}
}

// mountSomehow mounts a snapshot of any kind.
func (e *env) mountSomehow(key snapshot.Key, kind snapshot.Kind) (string, func()) {
	e.Helper()
	if kind != snapshot.KindCommitted {
		return e.mount(key)
	}
	const view = "somehow"
	_, err := e.store.View(e.ctx(), view, key, nil)
	e.must(err)
	target, unmount := e.mount(view)
	return target, func() {
		unmount()
		e.must(e.store.Remove(e.ctx(), view))
	}
}

// mounted runs do with the folders where both stores have key mounted, and
// compares them after it.
func (h *history) mounted(key snapshot.Key, do func(roots []string)) {
	var roots []string
	var unmounts []func()
	for _, e := range h.envs {
		target, unmount := e.mount(key)
		roots, unmounts = append(roots, target), append(unmounts, unmount)
	}
	do(roots)
	same(h.T, readTree(h.T, roots[1]), readTree(h.T, roots[0]))
	for _, unmount := range unmounts {
		unmount()
	}
	if h.Failed() {
		h.Fatalf("%s differs", key)
	}
}

func describeEntries(entries []entry) string {
	var parts []string
	for _, e := range entries {
		parts = append(parts, fmt.Sprintf("%c %s", e.Typeflag, e.Name))
	}
	return strings.Join(parts, ", ")
}

func listTar(t *testing.T, archived []byte) string {
	t.Helper()
	var lines []string
	r := newTarReader(archived)
	for {
		hdr, err := r.Next()
		if err == io.EOF {
			return strings.Join(lines, "\n  ")
		}
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%c %s %o %d:%d %d %d %s %v", hdr.Typeflag, hdr.Name, hdr.Mode, hdr.Uid, hdr.Gid, hdr.Size, hdr.ModTime.UnixNano(), hdr.Linkname, hdr.PAXRecords))
	}
}
