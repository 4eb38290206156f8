package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"berth/base/errs"
	"berth/base/kv"
	"berth/face/containerd"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
)

// mountable lets the fake answer Mounts.
type mountable struct{ *fakesnapshot.Store }

func (m mountable) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	info, err := m.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	return []snapshot.Mount{{Type: "fake", Source: string(key), Options: []string{"parent=" + string(info.Parent), "lowerdir=/layers/1:/layers/2::/bodies"}}}, nil
}

// trees remembers which trees are mounted.
type trees struct {
	mu      sync.Mutex
	mounted map[snapshot.Key]bool
}

func (r *trees) Mounts(_ context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mounted[key] = true
	return []snapshot.Mount{{Type: "bind", Source: "/trees/" + string(key)}}, nil
}

func (r *trees) Remove(_ context.Context, key snapshot.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mounted, key)
	return nil
}

// bench is a service on a fake store that can be restarted.
type bench struct {
	store mountable
	trees containerd.Trees
	path  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return &bench{store: mountable{fakesnapshot.New()}, path: filepath.Join(t.TempDir(), "db")}
}

// start opens the service and returns containerd's client for each of the
// snapshotters named. end closes it all.
func (b *bench) start(t *testing.T, names ...string) (clients []snapshots.Snapshotter, end func()) {
	t.Helper()
	db, err := kv.Open(b.path)
	must(t, err)
	service, err := containerd.Open(t.Context(), containerd.Config{Store: b.store, Trees: b.trees, DB: db, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, service)
	listener := bufconn.Listen(1 << 16)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	must(t, err)
	for _, name := range names {
		clients = append(clients, proxy.NewSnapshotter(api.NewSnapshotsClient(conn), name))
	}
	end = sync.OnceFunc(func() {
		_ = conn.Close()
		server.Stop()
		serving.Wait()
		must(t, db.Close())
	})
	t.Cleanup(end)
	return clients, end
}

func (b *bench) one(t *testing.T) snapshots.Snapshotter {
	t.Helper()
	clients, _ := b.start(t, "berth")
	return clients[0]
}

// keys lists what is in the store, those committed only.
func (b *bench) keys(t *testing.T, kind snapshot.Kind) (keys []snapshot.Key) {
	t.Helper()
	must(t, b.store.Walk(t.Context(), func(info snapshot.Info) error {
		if info.Kind == kind {
			keys = append(keys, info.Key)
		}
		return nil
	}))
	return keys
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, s snapshots.Snapshotter, filters ...string) (names []string) {
	t.Helper()
	must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}, filters...))
	return names
}

func prepare(t *testing.T, s snapshots.Snapshotter, key, parent string, opts ...snapshots.Opt) {
	t.Helper()
	_, err := s.Prepare(t.Context(), key, parent, opts...)
	must(t, err)
}

func layer(t *testing.T, s snapshots.Snapshotter, name, parent string, opts ...snapshots.Opt) {
	t.Helper()
	prepare(t, s, name+" being made", parent, opts...)
	must(t, s.Commit(t.Context(), name, name+" being made", opts...))
}

// chain is a chain ID made of one digit, ref the label that says so.
func chain(digit int) string { return "sha256:" + strings.Repeat(fmt.Sprint(digit), 64) }

func ref(digit int) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain(digit)})
}

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

// unpack does as containerd's unpacker: a layer that is known is not unpacked.
func unpack(t *testing.T, s snapshots.Snapshotter, prefix, parent string, digit int) (name string, known bool) {
	t.Helper()
	key := prefix + "extract " + chain(digit)
	_, err := s.Prepare(t.Context(), key, parent, ref(digit))
	if errdefs.IsAlreadyExists(err) {
		found := names(t, s, fmt.Sprintf("labels.%q==%s,parent==%q", snapshots.LabelSnapshotRef, chain(digit), parent))
		if len(found) != 1 {
			t.Fatalf("layer %d is known by %q", digit, found)
		}
		return found[0], true
	}
	must(t, err)
	must(t, s.Commit(t.Context(), prefix+chain(digit), key, ref(digit)))
	return prefix + chain(digit), false
}

// A layer is unpacked once: for all namespaces of one containerd, and for
// others, which get names of their own for it.
func TestKnownLayers(t *testing.T) {
	b := newBench(t)
	clients, _ := b.start(t, "berth", "other")
	one, other := clients[0], clients[1]
	base, _ := unpack(t, one, "ns/1/", "", 1)
	top, _ := unpack(t, one, "ns/2/", base, 2)
	for i, parent := range []string{"", base} {
		name, known := unpack(t, one, "second/9/", parent, i+1)
		if want := []string{base, top}[i]; !known || name != want {
			t.Errorf("layer %d in a second namespace: %q, known %v; want %q", i+1, name, known, want)
		}
	}
	otherBase, known := unpack(t, other, "ns/1/", "", 1)
	if !known {
		t.Error("another snapshotter unpacks again")
	}
	otherTop, known := unpack(t, other, "ns/2/", otherBase, 2)
	if again, _ := unpack(t, other, "ns/3/", otherBase, 2); !known || again != otherTop {
		t.Errorf("the name of a shared layer is %q and then %q", otherTop, again)
	}
	if keys := b.keys(t, snapshot.KindCommitted); len(keys) != 2 {
		t.Errorf("the store has %v", keys)
	}
	prepare(t, other, "container", otherTop)

	// Each may go by itself; the last one takes the layer along.
	must(t, one.Remove(t.Context(), top))
	must(t, one.Remove(t.Context(), base))
	if err := other.Remove(t.Context(), otherTop); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a layer under a container went: %v", err)
	}
	must(t, other.Remove(t.Context(), "container"))
	must(t, other.Remove(t.Context(), otherTop))
	must(t, other.Remove(t.Context(), otherBase))
	if keys := b.keys(t, snapshot.KindCommitted); len(keys) != 0 {
		t.Errorf("the store still has %v", keys)
	}
	if _, known := unpack(t, one, "ns/4/", "", 1); known {
		t.Error("a layer that is gone is known")
	}
}

// Two that unpack the same layer at once end up with one.
func TestSameLayerAtOnce(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	prepare(t, s, "a/extract", "", ref(1))
	prepare(t, s, "b/extract", "", ref(1))
	must(t, s.Commit(t.Context(), "a/"+chain(1), "a/extract", ref(1)))
	must(t, s.Commit(t.Context(), "b/"+chain(1), "b/extract", ref(1)))
	if committed, active := b.keys(t, snapshot.KindCommitted), b.keys(t, snapshot.KindActive); len(committed) != 1 || len(active) != 0 {
		t.Errorf("the store has %v and %v", committed, active)
	}
	must(t, s.Remove(t.Context(), "a/"+chain(1)))
	prepare(t, s, "container", "b/"+chain(1))
}

// Who does not say what he unpacks but in the name of his work shares what came
// out of it, and what he made is known to those who say it.
func TestLayersWithoutLabel(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	for _, namespace := range []string{"one/1/", "two/2/"} {
		prepare(t, s, namespace+"extract-1-ab "+chain(1), "")
		must(t, s.Commit(t.Context(), namespace+chain(1), namespace+"extract-1-ab "+chain(1)))
	}
	if committed, active := b.keys(t, snapshot.KindCommitted), b.keys(t, snapshot.KindActive); len(committed) != 1 || len(active) != 0 {
		t.Errorf("the store has %v and %v", committed, active)
	}
	if _, known := unpack(t, s, "three/3/", "", 1); !known {
		t.Error("the layer is unpacked again")
	}
}

// What only looks like the layer is not taken for it.
func TestUnknownLayers(t *testing.T) {
	s := newBench(t).one(t)
	mapped := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: "0:1000:1", snapshots.LabelSnapshotRef: chain(1)})
	layer(t, s, "shifted/"+chain(1), "", mapped)
	layer(t, s, "somebody's own", "", ref(2))
	layer(t, s, "x/"+chain(3), "somebody's own", ref(3))
	for _, digit := range []int{1, 2, 3} {
		if _, known := unpack(t, s, "ns/", "", digit); known {
			t.Errorf("layer %d is known", digit)
		}
	}
	// What has no chain ID for a ref is none of our business.
	odd := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "mine"})
	layer(t, s, "ns/mine", "", odd)
	prepare(t, s, "again", "", odd)
}

// A failing store leaves names as they were, and nothing behind.
func TestFailingStore(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	layer(t, s, "base", "")
	prepare(t, s, "active", "base")
	prepare(t, s, "loose", "")
	before := names(t, s)
	full := errs.New(errs.Exhausted, "the disk is full")
	for _, operation := range []string{"Prepare", "View", "Commit", "Diff", "Ingest"} {
		b.store.Fail = func(o string) error {
			if o == operation {
				return full
			}
			return nil
		}
		var err error
		switch operation {
		case "Prepare":
			_, err = s.Prepare(t.Context(), "new", "base")
		case "View":
			_, err = s.View(t.Context(), "new", "base")
		case "Commit":
			err = s.Commit(t.Context(), "new", "active")
		default:
			err = s.Commit(t.Context(), "new", "loose", snapshots.WithParent("base"))
		}
		b.store.Fail = nil
		if !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", operation, err)
		}
		if after := names(t, s); !slices.Equal(before, after) {
			t.Errorf("%s: there are %q, before %q", operation, after, before)
		}
	}
	must(t, s.Commit(t.Context(), "new", "active"))
	if n := len(b.keys(t, snapshot.KindActive)); n != 1 {
		t.Errorf("%d active ones are left in the store", n)
	}
}

// A snapshot that the store would not let go is removed by Cleanup.
func TestCleanup(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	prepare(t, s, "active", "")
	b.store.Fail = func(o string) error {
		if o == "Remove" {
			return errors.New("not now")
		}
		return nil
	}
	must(t, s.Remove(t.Context(), "active"))
	b.store.Fail = nil
	if n := len(b.keys(t, snapshot.KindActive)); n != 1 {
		t.Fatalf("%d left", n)
	}
	must(t, s.(snapshots.Cleaner).Cleanup(t.Context()))
	if n := len(b.keys(t, snapshot.KindActive)); n != 0 {
		t.Errorf("%d left", n)
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

// crash copies the records as they are on disk now.
func (b *bench) crash(t *testing.T) {
	t.Helper()
	body, err := os.ReadFile(b.path)
	must(t, err)
	b.path += ".crashed"
	must(t, os.WriteFile(b.path, body, 0o600))
}

// A commit that was written down is done after a crash that came before it was
// done; one that was not is not.
func TestCrashInCommit(t *testing.T) {
	b := newBench(t)
	clients, end := b.start(t, "berth")
	layer(t, clients[0], "base", "")
	prepare(t, clients[0], "active", "base")
	body, err := os.ReadFile(b.path)
	must(t, err)
	before := *b
	before.path += ".before"
	must(t, os.WriteFile(before.path, body, 0o600))
	b.store.Fail = func(o string) error {
		if o == "Commit" {
			crashed := *b
			crashed.crash(t)
			return errs.New(errs.Unavailable, "the machine is on fire")
		}
		return nil
	}
	if err := clients[0].Commit(t.Context(), "layer", "active"); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	b.store.Fail = nil
	if got := names(t, clients[0]); !slices.Equal(got, []string{"active", "base"}) {
		t.Errorf("after a commit that failed: %q", got)
	}
	end()

	s := before.one(t)
	if got := names(t, s); !slices.Equal(got, []string{"active", "base"}) {
		t.Errorf("after a crash before: %q", got)
	}
	b.path += ".crashed"
	s = b.one(t)
	info, err := s.Stat(t.Context(), "layer")
	if got := names(t, s); err != nil || info.Parent != "base" || !slices.Equal(got, []string{"base", "layer"}) {
		t.Errorf("after a crash within: %q, %v, %v", got, info, err)
	}
	prepare(t, s, "container", "layer")
}

// Open removes what no name stands for, leaves alone what is not its own, and
// forgets the names of what was lost.
func TestLeftovers(t *testing.T) {
	b := newBench(t)
	clients, end := b.start(t, "berth")
	s := clients[0]
	layer(t, s, "lost", "")
	lost := b.keys(t, snapshot.KindCommitted)[0]
	layer(t, s, "kept", "")
	end()
	must(t, b.store.Remove(t.Context(), lost))
	for _, key := range []snapshot.Key{"containerd-base", "foreign"} {
		_, err := b.store.Prepare(t.Context(), "work", "", nil)
		must(t, err)
		_, err = b.store.Commit(t.Context(), key, "work", nil)
		must(t, err)
	}
	_, err := b.store.View(t.Context(), "containerd-view", "containerd-base", nil)
	must(t, err)
	s = b.one(t)
	if got := names(t, s); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("there are %q", got)
	}
	if keys := b.keys(t, snapshot.KindCommitted); len(keys) != 2 || keys[1] != "foreign" {
		t.Errorf("the store has %v", keys)
	}
	layer(t, s, "lost", "")
}

// Many at once: of those who want one name one gets it, and what is left in
// the store is what has a name.
func TestMany(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	layer(t, s, "base", "")
	var all sync.WaitGroup
	var mu sync.Mutex
	won := map[string]int{}
	for worker := range 8 {
		all.Go(func() {
			for i := range 20 {
				name := fmt.Sprint("name ", i)
				if _, err := s.Prepare(t.Context(), name, "base"); err == nil {
					mu.Lock()
					won[name]++
					mu.Unlock()
				} else if !errdefs.IsAlreadyExists(err) {
					t.Error(err)
				}
				key := fmt.Sprint(worker, "/", i)
				if _, err := s.Prepare(t.Context(), key, "base", ref(i%3)); err != nil && !errdefs.IsAlreadyExists(err) {
					t.Error(err)
				} else if err == nil {
					if err := s.Commit(t.Context(), key+"/"+chain(i%3), key, ref(i%3)); err != nil {
						t.Error(err)
					}
				}
				if err := s.Remove(t.Context(), "base"); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("removed a parent: %v", err)
				}
				_, _ = s.Update(t.Context(), snapshots.Info{Name: name, Labels: map[string]string{"by": fmt.Sprint(worker)}}, "labels.by")
			}
		})
	}
	all.Wait()
	for name, n := range won {
		if n != 1 {
			t.Errorf("%s was made %d times", name, n)
		}
	}
	held := len(b.keys(t, snapshot.KindActive)) + len(b.keys(t, snapshot.KindCommitted))
	must(t, s.(snapshots.Cleaner).Cleanup(t.Context()))
	if now := len(b.keys(t, snapshot.KindActive)) + len(b.keys(t, snapshot.KindCommitted)); now != held || len(won) != 20 {
		t.Errorf("the store held %d snapshots, of which %d have a name; %d names", held, now, len(won))
	}
}
