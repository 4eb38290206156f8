package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
)

func keys(e *env) {
	for _, key := range []snapshot.Key{"", "a/b", "..", ".", "ä", "a b", snapshot.Key(strings.Repeat("k", 129))} {
		_, err := e.store.Prepare(e.ctx(), key, "", nil)
		e.want(errs.Invalid, err, fmt.Sprintf("prepare %q", key))
		_, err = e.store.View(e.ctx(), key, "", nil)
		e.want(errs.Invalid, err, fmt.Sprintf("view %q", key))
		_, err = e.store.Stat(e.ctx(), key)
		e.want(errs.NotFound, err, fmt.Sprintf("stat %q", key))
	}
	e.prepare("active", "")
	_, err := e.store.Commit(e.ctx(), "a/b", "active", nil)
	e.want(errs.Invalid, err, "commit to a bad name")
	_, err = e.store.Prepare(e.ctx(), "shifted", "", map[string]string{snapshot.UIDMap: "x"})
	e.want(errs.Invalid, err, "prepare with bad id maps")
	e.prepare(snapshot.Key(strings.Repeat("k", 128)), "")
	e.prepare("sha256:aZ0._-", "")
	_, err = e.store.Prepare(e.ctx(), "active", "", nil)
	e.want(errs.Exists, err, "prepare a key twice")
	_, err = e.store.View(e.ctx(), "active", "", nil)
	e.want(errs.Exists, err, "view under a key that is taken")

	_, usageErr := e.store.Usage(e.ctx(), "none")
	_, mountsErr := e.store.Mounts(e.ctx(), "none")
	_, changesErr := e.store.Changes(e.ctx(), "none")
	_, commitErr := e.store.Commit(e.ctx(), "name", "none", nil)
	for doing, err := range map[string]error{
		"usage": usageErr, "mounts": mountsErr, "changes": changesErr, "commit": commitErr,
		"remove": e.store.Remove(e.ctx(), "none"), "labels": e.store.SetLabels(e.ctx(), "none", nil),
		"diff": e.store.Diff(e.ctx(), "none", &strings.Builder{}), "mount": e.store.Mount(e.ctx(), "none", e.TempDir()),
	} {
		e.want(errs.NotFound, err, doing+" of nothing")
	}
}

func parents(e *env) {
	_, err := e.store.Prepare(e.ctx(), "a", "none", nil)
	e.want(errs.NotFound, err, "prepare on a missing parent")
	e.prepare("active", "")
	_, err = e.store.View(e.ctx(), "view", "", nil)
	e.must(err)
	for _, parent := range []snapshot.Key{"active", "view"} {
		_, err = e.store.Prepare(e.ctx(), "a", parent, nil)
		e.want(errs.Conflict, err, "prepare on "+string(parent))
		_, err = e.store.View(e.ctx(), "a", parent, nil)
		e.want(errs.Conflict, err, "view of "+string(parent))
		in, err := e.store.Ingest(e.ctx(), archive(e.T))
		e.must(err)
		_, err = in.Commit(e.ctx(), "a", parent, nil)
		e.want(errs.Conflict, err, "ingest on "+string(parent))
		_, err = in.Commit(e.ctx(), "a", "none", nil)
		e.want(errs.NotFound, err, "ingest on a missing parent")
		_, err = in.Commit(e.ctx(), "a-"+parent, "", nil)
		e.must(err) // what failed before left it as it was
	}
}

func commits(e *env) {
	before := time.Now().Add(-time.Second)
	active, err := e.store.Prepare(e.ctx(), "work", "", map[string]string{"a": "1", "b": "2"})
	e.must(err)
	if active.Kind != snapshot.KindActive || active.Key != "work" || active.Created.Before(before) {
		e.Errorf("prepared %+v", active)
	}
	e.change("work", func(root string) { e.must(os.WriteFile(filepath.Join(root, "f"), []byte("x"), 0o644)) })
	layer, err := e.store.Commit(e.ctx(), "layer", "work", map[string]string{"b": "3", "c": "4"})
	e.must(err)
	want := map[string]string{"a": "1", "b": "3", "c": "4"}
	if layer.Kind != snapshot.KindCommitted || layer.Key != "layer" || !maps.Equal(layer.Labels, want) {
		e.Errorf("committed %+v, want labels %v", layer, want)
	}
	_, err = e.store.Stat(e.ctx(), "work")
	e.want(errs.NotFound, err, "stat of what was committed")
	e.prepare("work", "layer") // the key is free again
	info, err := e.store.Stat(e.ctx(), "work")
	e.must(err)
	if info.Parent != "layer" {
		e.Errorf("parent is %q, want layer", info.Parent)
	}
	_, err = e.store.Commit(e.ctx(), "layer", "work", nil)
	e.want(errs.Exists, err, "commit to a taken name")
	_, err = e.store.Commit(e.ctx(), "work", "work", nil)
	e.want(errs.Exists, err, "commit to its own key")
	_, err = e.store.Commit(e.ctx(), "other", "layer", nil)
	e.want(errs.Conflict, err, "commit of what is committed")
	_, err = e.store.View(e.ctx(), "view", "layer", nil)
	e.must(err)
	_, err = e.store.Commit(e.ctx(), "other", "view", nil)
	e.want(errs.Conflict, err, "commit of a view")
	_, err = e.store.Mounts(e.ctx(), "layer")
	e.want(errs.Conflict, err, "mounts of a layer")
	e.want(errs.Conflict, e.store.Mount(e.ctx(), "layer", e.TempDir()), "mount of a layer")
	e.look("layer").names(e.T, "f")
}

func removes(e *env) {
	e.layer("base", "", file("f", "x"))
	e.prepare("child", "base")
	e.want(errs.Conflict, e.store.Remove(e.ctx(), "base"), "remove of a parent")
	e.must(e.store.Remove(e.ctx(), "child"))
	_, err := e.store.View(e.ctx(), "child", "base", nil)
	e.must(err)
	e.want(errs.Conflict, e.store.Remove(e.ctx(), "base"), "remove of a view's parent")
	e.must(e.store.Remove(e.ctx(), "child"))
	e.layer("top", "base", file("g", "x"))
	e.want(errs.Conflict, e.store.Remove(e.ctx(), "base"), "remove of a layer's parent")
	e.must(e.store.Remove(e.ctx(), "top"))
	e.must(e.store.Remove(e.ctx(), "base"))
	_, err = e.store.Stat(e.ctx(), "base")
	e.want(errs.NotFound, err, "stat of what was removed")
	e.want(errs.NotFound, e.store.Remove(e.ctx(), "base"), "remove again")
	e.layer("base", "", file("other", "y")) // the key is free at once, with nothing of the old
	e.look("base").names(e.T, "other")
}

func labels(e *env) {
	given := map[string]string{"a": "1", "b": "2"}
	_, err := e.store.Prepare(e.ctx(), "k", "", given)
	e.must(err)
	given["a"] = "changed by the caller"
	e.must(e.store.SetLabels(e.ctx(), "k", map[string]string{"b": "", "c": "3"}))
	info, err := e.store.Stat(e.ctx(), "k")
	e.must(err)
	if want := map[string]string{"a": "1", "c": "3"}; !maps.Equal(info.Labels, want) {
		e.Errorf("labels %v, want %v", info.Labels, want)
	}
	info.Labels["a"] = "changed by another"
	info, err = e.store.Stat(e.ctx(), "k")
	e.must(err)
	if info.Labels["a"] != "1" {
		e.Errorf("a caller changed the store's labels: %v", info.Labels)
	}
	e.want(errs.Invalid, e.store.SetLabels(e.ctx(), "k", map[string]string{snapshot.GIDMap: "0:1:1"}), "half an id map")
}

func walks(e *env) {
	for _, key := range []snapshot.Key{"c", "a", "b"} {
		e.prepare(key, "")
	}
	var seen []snapshot.Key
	e.must(e.store.Walk(e.ctx(), func(info snapshot.Info) error {
		seen = append(seen, info.Key)
		if info.Key == "a" {
			return e.store.Remove(e.ctx(), "c") // fn may call the store
		}
		return nil
	}))
	if !slices.Equal(seen, []snapshot.Key{"a", "b", "c"}) {
		e.Errorf("walked %q, want what was there at the beginning in order", seen)
	}
	stop := errors.New("stop")
	if err := e.store.Walk(e.ctx(), func(snapshot.Info) error { return stop }); !errors.Is(err, stop) {
		e.Errorf("walk returned %v, want fn's error", err)
	}
}

func usage(e *env) {
	body := strings.Repeat("0123456789abcdef", 1<<13) // 128 KiB
	e.layer("base", "", file("big", body), link("same", "big"), dir("d"))
	e.prepare("work", "base")
	e.change("work", func(root string) {
		e.must(os.WriteFile(filepath.Join(root, "new"), []byte(body), 0o644))
	})
	_, err := e.store.View(e.ctx(), "view", "base", nil)
	e.must(err)
	within := func(key snapshot.Key, size, slack, inodes int64) {
		e.Helper()
		u, err := e.store.Usage(e.ctx(), key)
		e.must(err)
		if u.Size < size || u.Size > size+slack || u.Inodes < inodes || u.Inodes > inodes+1 {
			e.Errorf("usage of %s is %+v, want some %d bytes and %d inodes", key, u, size, inodes)
		}
	}
	within("base", 128<<10, 16<<10, 2)
	within("work", 128<<10, 16<<10, 1)
	within("view", 0, 0, 0)
	_, err = e.store.Commit(e.ctx(), "top", "work", nil)
	e.must(err)
	within("top", 128<<10, 16<<10, 1)
	within("top", 128<<10, 16<<10, 1) // as remembered
}

func views(e *env) {
	e.layer("base", "", file("f", "x"), dir("d"))
	before := e.look("base")
	_, err := e.store.View(e.ctx(), "view", "base", nil)
	e.must(err)
	target, unmount := e.mount("view")
	// Where the driver can refuse it does; in any case nothing may change.
	_ = os.WriteFile(filepath.Join(target, "f"), []byte("changed"), 0o644)
	_ = os.WriteFile(filepath.Join(target, "new"), []byte("new"), 0o644)
	_ = os.RemoveAll(filepath.Join(target, "d"))
	unmount()
	same(e.T, e.look("base"), before)
	target, unmount = e.mount("view")
	same(e.T, readTree(e.T, target), before)
	unmount()
	_, err = e.store.View(e.ctx(), "empty", "", nil)
	e.must(err)
	target, _ = e.mount("empty")
	readTree(e.T, target).names(e.T)
}

func canceled(e *env) {
	e.layer("base", "", file("f", "x"))
	e.prepare("work", "base")
	ctx, cancel := context.WithCancel(e.ctx())
	cancel()
	_, prepareErr := e.store.Prepare(ctx, "a", "base", nil)
	_, commitErr := e.store.Commit(ctx, "name", "work", nil)
	_, ingestErr := e.store.Ingest(ctx, archive(e.T, file("f", "x")))
	for doing, err := range map[string]error{
		"prepare": prepareErr, "commit": commitErr, "ingest": ingestErr, "remove": e.store.Remove(ctx, "work"),
		"diff": e.store.Diff(ctx, "base", &strings.Builder{}), "mount": e.store.Mount(ctx, "work", e.TempDir()),
	} {
		if kind := errs.KindOf(err); kind != errs.Canceled {
			e.Errorf("%s: got error %v, want it canceled", doing, err)
		}
	}
	_, err := e.store.Stat(e.ctx(), "a")
	e.want(errs.NotFound, err, "stat of what was not prepared")
}

func oneWinner(e *env) {
	e.layer("base", "", file("f", "x"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[string]int{}
	count := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			won[what]++
		} else if !errors.Is(err, errs.Exists) {
			e.Errorf("%s: %v", what, err)
		}
	}
	for range 8 {
		wg.Go(func() {
			_, err := e.store.Prepare(e.ctx(), "one", "base", nil)
			count("prepare", err)
		})
		wg.Go(func() {
			in, err := e.store.Ingest(e.ctx(), archive(e.T, file("g", "y")))
			if err == nil {
				_, err = in.Commit(e.ctx(), "layer", "base", nil)
			}
			count("ingest", err)
		})
	}
	wg.Wait()
	if won["prepare"] != 1 || won["ingest"] != 1 {
		e.Errorf("winners: %v, want one of each", won)
	}
	e.look("layer").names(e.T, "f", "g")
}

// restart closes the store and opens it anew.
func (e *env) restart() {
	e.Helper()
	e.must(e.store.Close())
	e.store = e.open(e.T, e.dir)
}

func reopen(e *env) {
	e.layer("base", "", file("f", "x").mode(0o4755))
	_, err := e.store.Prepare(e.ctx(), "work", "base", map[string]string{"a": "1"})
	e.must(err)
	e.change("work", func(root string) { e.must(os.WriteFile(filepath.Join(root, "g"), []byte("y"), 0o600)) })
	e.prepare("gone", "base")
	e.must(e.store.Remove(e.ctx(), "gone"))
	left, err := e.store.Ingest(e.ctx(), archive(e.T, file("left", "over")))
	e.must(err)
	_ = left // neither committed nor dropped: a crash
	before := e.look("base")
	infos := e.all()
	e.restart()
	if got := e.all(); !slices.EqualFunc(got, infos, equalInfo) {
		e.Errorf("after a restart:\n got %+v\nwant %+v", got, infos)
	}
	same(e.T, e.look("base"), before)
	e.want(errs.Conflict, e.store.Remove(e.ctx(), "base"), "remove of a parent after a restart")
	_, err = e.store.Commit(e.ctx(), "top", "work", nil)
	e.must(err)
	e.look("top").names(e.T, "f", "g")
	e.restart()
	e.look("top").names(e.T, "f", "g")
	e.layer("next", "top", file("h", "z")) // new ids do not meet old ones
	e.look("next").names(e.T, "f", "g", "h")
}

func (e *env) all() []snapshot.Info {
	var all []snapshot.Info
	e.must(e.store.Walk(e.ctx(), func(info snapshot.Info) error { all = append(all, info); return nil }))
	return all
}

func equalInfo(a, b snapshot.Info) bool {
	return a.Key == b.Key && a.Parent == b.Parent && a.Kind == b.Kind && a.Created.Equal(b.Created) && maps.Equal(a.Labels, b.Labels)
}

func syncs(e *env) {
	e.must(e.store.Sync(e.ctx()))
	e.layer("base", "", file("f", "x"))
	e.must(e.store.Sync(e.ctx()))
	e.restart()
	e.look("base").names(e.T, "f")
}

func depth(e *env) {
	var parent snapshot.Key
	for i := range snapshot.MaxDepth {
		name := snapshot.Key(fmt.Sprintf("layer-%d", i))
		entries := []entry{file("who", fmt.Sprint(i))}
		if i%50 == 0 {
			entries = append(entries, file(fmt.Sprintf("dir/%d", i), "x"))
		}
		e.layer(name, parent, entries...)
		parent = name
	}
	_, err := e.store.Prepare(e.ctx(), "too-deep", parent, nil)
	e.want(errs.Exhausted, err, "prepare on the deepest layer")
	for _, at := range []int{119, snapshot.MaxDepth - 2} {
		e.prepare("work", snapshot.Key(fmt.Sprintf("layer-%d", at)))
		target, unmount := e.mount("work")
		who, err := os.ReadFile(filepath.Join(target, "who"))
		e.must(err)
		files, err := os.ReadDir(filepath.Join(target, "dir"))
		e.must(err)
		if string(who) != fmt.Sprint(at) || len(files) != at/50+1 {
			e.Errorf("on %d layers: who is %s, %d files", at+1, who, len(files))
		}
		e.must(os.WriteFile(filepath.Join(target, "who"), []byte("me"), 0o644))
		unmount()
		e.must(e.store.Remove(e.ctx(), "work"))
	}
}

func mounts(e *env) {
	e.layer("base", "", file("f", "x"))
	e.prepare("work", "base")
	made, err := e.store.Mounts(e.ctx(), "work")
	switch {
	case errors.Is(err, errs.Unsupported):
		e.Log("this driver's trees cannot be mounted by others")
	case err != nil:
		e.Error(err)
	case len(made) == 0 || made[0].Type == "":
		e.Errorf("mounts are %+v", made)
	default:
		target := e.TempDir()
		foreignMount(e, made, target)
		readTree(e.T, target).names(e.T, "f")
		e.must(e.store.Unmount(e.ctx(), target))
	}
	target := e.TempDir()
	e.must(e.store.Unmount(e.ctx(), target)) // nothing is mounted there
	e.must(e.store.Unmount(e.ctx(), filepath.Join(target, "none")))
	e.must(e.store.Mount(e.ctx(), "work", target))
	open, err := os.Open(filepath.Join(target, "f"))
	e.must(err)
	defer open.Close()
	e.must(e.store.Unmount(e.ctx(), target))
	buf := make([]byte, 1)
	if _, err := open.Read(buf); err != nil || buf[0] != 'x' {
		e.Errorf("a file still open read %q, %v", buf, err)
	}
	readTree(e.T, target).names(e.T)
}

// lost: a layer below may be absent after a loss of power; it comes back under
// its name. A driver has its own way to lose one, so here only the return.
func lost(e *env) {
	e.layer("base", "", file("f", "x"))
	in, err := e.store.Ingest(e.ctx(), archive(e.T, file("f", "x")))
	e.must(err)
	_, err = in.Commit(e.ctx(), "base", "", nil)
	e.want(errs.Exists, err, "ingest of a known layer")
	e.must(in.Abort(e.ctx()))
}
