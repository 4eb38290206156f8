package snapshots_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"berth/node/snapshot"
)

// Any string is a name, in each snapshotter apart, and stays one over a
// restart.
func TestNames(t *testing.T) {
	all := []string{
		"k8s.io/17/extract-123456-aBc_ sha256:" + strings.Repeat("0", 64), "k8s.io/17/extract-123456-aBc_ sha256:" + strings.Repeat("1", 64),
		"/", "..", "ü/\n\x00", strings.Repeat("long/", 20_000), "a", "a ", "A",
	}
	b := newBench(t)
	clients, end := b.start(t, "berth", "other")
	for i, name := range all {
		prepare(t, clients[0], name, "", snapshots.WithLabels(map[string]string{"number": fmt.Sprint(i)}))
	}
	layer(t, clients[1], "base", "")
	for _, name := range all[:2] {
		_, err := clients[1].View(t.Context(), name, "base")
		must(t, err)
	}
	before := []snapshots.Info{}
	walk := func(into *[]snapshots.Info) {
		for _, s := range clients {
			must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
				*into = append(*into, info)
				return nil
			}))
		}
	}
	walk(&before)
	end()
	clients, _ = b.start(t, "berth", "other")
	after := []snapshots.Info{}
	walk(&after)
	if fmt.Sprint(before) != fmt.Sprint(after) || len(after) != len(all)+3 {
		t.Errorf("after a restart:\n%v\nbefore:\n%v", after, before)
	}
	for i, name := range all {
		info, err := clients[0].Stat(t.Context(), name)
		if err != nil || info.Name != name || info.Labels["number"] != fmt.Sprint(i) || info.Kind != snapshots.KindActive {
			t.Errorf("stat %.60q: %v, %v", name, info, err)
		}
		must(t, clients[0].Remove(t.Context(), name))
	}
	if left := names(t, clients[0]); len(left) != 0 {
		t.Errorf("left %q", left)
	}
	if _, err := clients[0].Prepare(t.Context(), "", ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no name: %v", err)
	}
}

// Failures are those of containerd's own snapshotters.
func TestFailures(t *testing.T) {
	s := newBench(t).one(t)
	ctx := t.Context()
	layer(t, s, "base", "")
	prepare(t, s, "active", "base")
	prepare(t, s, "on nothing", "")
	_, err := s.View(ctx, "view", "base")
	must(t, err)
	layer(t, s, "other", "")

	for what, c := range map[string]struct {
		is func(error) bool
		do func() error
	}{
		"prepare a name that is taken": {errdefs.IsAlreadyExists, func() error { _, err := s.Prepare(ctx, "view", ""); return err }},
		"view a name that is taken":    {errdefs.IsAlreadyExists, func() error { _, err := s.View(ctx, "base", "base"); return err }},
		"prepare on nothing there":     {errdefs.IsNotFound, func() error { _, err := s.Prepare(ctx, "new", "none"); return err }},
		"prepare on an active one":     {errdefs.IsInvalidArgument, func() error { _, err := s.Prepare(ctx, "new", "active"); return err }},
		"prepare with a long label": {errdefs.IsInvalidArgument, func() error {
			_, err := s.Prepare(ctx, "new", "", snapshots.WithLabels(map[string]string{"l": strings.Repeat("x", 4096)}))
			return err
		}},
		"mounts of a layer":              {errdefs.IsFailedPrecondition, func() error { _, err := s.Mounts(ctx, "base"); return err }},
		"mounts of none":                 {errdefs.IsNotFound, func() error { _, err := s.Mounts(ctx, "none"); return err }},
		"commit to a name that is taken": {errdefs.IsAlreadyExists, func() error { return s.Commit(ctx, "base", "active") }},
		"commit none":                    {errdefs.IsNotFound, func() error { return s.Commit(ctx, "new", "none") }},
		"commit a view":                  {errdefs.IsFailedPrecondition, func() error { return s.Commit(ctx, "new", "view") }},
		"commit a layer":                 {errdefs.IsFailedPrecondition, func() error { return s.Commit(ctx, "new", "base") }},
		"commit on another parent":       {errdefs.IsInvalidArgument, func() error { return s.Commit(ctx, "new", "active", snapshots.WithParent("other")) }},
		"commit on a parent not there":   {errdefs.IsNotFound, func() error { return s.Commit(ctx, "new", "on nothing", snapshots.WithParent("none")) }},
		"commit with a long label": {errdefs.IsInvalidArgument, func() error {
			return s.Commit(ctx, "new", "active", snapshots.WithLabels(map[string]string{"l": strings.Repeat("x", 4096)}))
		}},
		"remove none":              {errdefs.IsNotFound, func() error { return s.Remove(ctx, "none") }},
		"remove what has children": {errdefs.IsFailedPrecondition, func() error { return s.Remove(ctx, "base") }},
		"stat none":                {errdefs.IsNotFound, func() error { _, err := s.Stat(ctx, "none"); return err }},
		"usage of none":            {errdefs.IsNotFound, func() error { _, err := s.Usage(ctx, "none"); return err }},
		"update none":              {errdefs.IsNotFound, func() error { _, err := s.Update(ctx, snapshots.Info{Name: "none"}); return err }},
		"update the kind":          {errdefs.IsInvalidArgument, func() error { _, err := s.Update(ctx, snapshots.Info{Name: "base"}, "labels.a", "kind"); return err }},
		"update to a long label": {errdefs.IsInvalidArgument, func() error {
			_, err := s.Update(ctx, snapshots.Info{Name: "base", Labels: map[string]string{"l": strings.Repeat("x", 4096)}})
			return err
		}},
		"list by a bad filter": {errdefs.IsInvalidArgument, func() error { return s.Walk(ctx, nil, "labels.==") }},
	} {
		if err := c.do(); !c.is(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, want := names(t, s), []string{"active", "base", "on nothing", "other", "view"}; !slices.Equal(got, want) {
		t.Errorf("after the failures there are %q, want %q", got, want)
	}
}

// A long list comes in several messages.
func TestLongList(t *testing.T) {
	s := newBench(t).one(t)
	for i := range 250 {
		prepare(t, s, fmt.Sprint(i), "", snapshots.WithLabels(map[string]string{"even": fmt.Sprint(i%2 == 0)}))
	}
	if n := len(names(t, s)); n != 250 {
		t.Errorf("%d listed", n)
	}
	if n := len(names(t, s, "labels.even==true", `name==1`)); n != 126 {
		t.Errorf("%d listed by filters", n)
	}
}

// The labels of a layer are those of its commit alone; none reaches the store.
func TestLabels(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	prepare(t, s, "active", "", snapshots.WithLabels(map[string]string{"a": "1", snapshot.UIDMap: "nonsense"}))
	must(t, s.Commit(t.Context(), "layer", "active", snapshots.WithLabels(map[string]string{"b": "2"})))
	info, err := s.Stat(t.Context(), "layer")
	if err != nil || len(info.Labels) != 1 || info.Labels["b"] != "2" || !info.Created.Equal(info.Updated) {
		t.Errorf("%v, %v", info, err)
	}
	kept, err := b.store.Stat(t.Context(), b.keys(t, snapshot.KindCommitted)[0])
	if err != nil || len(kept.Labels) != 0 {
		t.Errorf("the store has labels %v, %v", kept.Labels, err)
	}
}

// Commit can put on a parent what was prepared on nothing.
func TestRebase(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	layer(t, s, "base", "")
	m, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	target := t.TempDir()
	must(t, b.store.Mount(t.Context(), snapshot.Key(m[0].Source), target))
	must(t, os.WriteFile(filepath.Join(target, "file"), []byte("body"), 0o600))
	must(t, b.store.Unmount(t.Context(), target))
	must(t, s.Commit(t.Context(), "top", "active", snapshots.WithParent("base")))
	info, err := s.Stat(t.Context(), "top")
	if err != nil || info.Parent != "base" {
		t.Fatalf("%v, %v", info, err)
	}
	m, err = s.View(t.Context(), "view", "top")
	must(t, err)
	top := strings.TrimPrefix(m[0].Options[0], "parent=")
	var tar bytes.Buffer
	must(t, b.store.Diff(t.Context(), snapshot.Key(top), &tar))
	if !strings.Contains(tar.String(), "body") {
		t.Error("the file is not in the layer")
	}
	if n := len(b.keys(t, snapshot.KindActive)); n != 0 {
		t.Errorf("%d active ones are left", n)
	}
}

// Where trees are mounted for containerd it binds them, and they go with their
// snapshots; but into what it unpacks it looks by itself, and is shown layers
// only.
func TestMountedTrees(t *testing.T) {
	b := newBench(t)
	mounted := &trees{mounted: map[snapshot.Key]bool{}}
	b.trees = mounted
	s := b.one(t)
	m, err := s.Prepare(t.Context(), "ns/1/extract-1-ab "+chain(1), "")
	if err != nil || len(m) != 1 || m[0].Type != "fake" || m[0].Options[1] != "lowerdir=/layers/1:/layers/2" || len(mounted.mounted) != 0 {
		t.Fatalf("to unpack into: %v, %v", m, err)
	}
	again, err := s.Mounts(t.Context(), "ns/1/extract-1-ab "+chain(1))
	if err != nil || again[0].Type != "bind" || len(mounted.mounted) != 1 {
		t.Errorf("to mount: %v, %v", again, err)
	}
	must(t, s.Commit(t.Context(), "ns/1/"+chain(1), "ns/1/extract-1-ab "+chain(1)))
	if len(mounted.mounted) != 0 {
		t.Errorf("a layer is still mounted: %v", mounted.mounted)
	}
	prepare(t, s, "work", "ns/1/"+chain(1))
	if _, err := s.View(t.Context(), "view", "ns/1/"+chain(1)); err != nil || len(mounted.mounted) != 2 {
		t.Errorf("mounted: %v, %v", mounted.mounted, err)
	}
	must(t, s.Remove(t.Context(), "work"))
	must(t, s.Remove(t.Context(), "view"))
	if len(mounted.mounted) != 0 {
		t.Errorf("still mounted: %v", mounted.mounted)
	}
}
