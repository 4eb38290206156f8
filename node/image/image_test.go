package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/blob"
	"berth/image/registrytest"
	"berth/node/image"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
	"berth/spec"
)

// kube is a namespace that names images, too.
const kube = "k8s.io"

// node is what a Set works on.
type node struct {
	*testing.T
	dir       string
	db        *kv.DB
	blobs     *blob.Store
	snapshots *fakesnapshot.Store
	store     snapshot.Store // snapshots, or what offers more
	policy    image.Policy
	set       *image.Set
	mu        sync.Mutex
	notes     []string
	told      []string // of scrubs
	users     map[string][]string
}

func newNode(t *testing.T, options ...func(*node)) *node {
	n := &node{T: t, dir: t.TempDir(), snapshots: fakesnapshot.New(), users: map[string][]string{}}
	n.store = n.snapshots
	for _, option := range options {
		option(n)
	}
	n.open()
	t.Cleanup(n.close)
	return n
}

func (n *node) open() {
	n.Helper()
	var err error
	if n.db, err = kv.Open(filepath.Join(n.dir, "db")); err != nil {
		n.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if n.blobs, err = blob.Open(n.Context(), filepath.Join(n.dir, "blobs"), log); err != nil {
		n.Fatal(err)
	}
	n.set, err = image.Open(n.Context(), image.Config{
		DB: n.db, Blobs: n.blobs, Snapshots: n.store, Policy: n.policy, Log: log, MaxLayer: 8 << 20, Spaces: []string{kube},
		Notify: func(action, _, name string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.notes = append(n.notes, action+" "+name)
		},
		Damaged: func(d spec.Damage) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.told = append(n.told, fmt.Sprintf("%s repaired %v", d.Part, d.Repaired))
		},
		Scrubbed: func(r spec.ScrubResult) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.told = append(n.told, fmt.Sprintf("scrubbed %d %d", r.Damaged, r.Repaired))
		},
	})
	if err != nil {
		n.Fatal(err)
	}
	n.set.SetUsers(func(id string) []string { return n.users[id] })
}

func (n *node) close() {
	if err := errors.Join(n.blobs.Close(), n.db.Close()); err != nil {
		n.Error(err)
	}
}

func (n *node) restart() {
	n.close()
	n.open()
}

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *node) want(kind errs.Kind, err error, doing string) {
	n.Helper()
	if !errors.Is(err, kind) {
		n.Errorf("%s: got error %v, want kind %q", doing, err, kind)
	}
}

func (n *node) pull(ref string) spec.Image {
	n.Helper()
	i, err := n.set.Pull(n.Context(), spec.PullRequest{Reference: ref}, nil)
	n.must(err)
	return i
}

// files reads the files that a container of the image would see.
func (n *node) files(i spec.Image) map[string]string {
	n.Helper()
	top, err := n.set.Chain(n.Context(), i.ID)
	n.must(err)
	_, err = n.snapshots.View(n.Context(), "look", top, nil)
	n.must(err)
	target := n.TempDir()
	n.must(n.snapshots.Mount(n.Context(), "look", target))
	found := map[string]string{}
	n.must(filepath.WalkDir(target, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			body, err := os.ReadFile(path)
			rel, _ := filepath.Rel(target, path)
			found[rel] = string(body)
			return err
		}
		return err
	}))
	n.must(n.snapshots.Unmount(n.Context(), target))
	n.must(n.snapshots.Remove(n.Context(), "look"))
	return found
}

func (n *node) layers() (count int) {
	n.must(n.snapshots.Walk(n.Context(), func(snapshot.Info) error { count++; return nil }))
	return count
}

func (n *node) blobCount() (count int) {
	n.must(n.blobs.Walk(n.Context(), func(blob.Info) error { count++; return nil }))
	return count
}

// settle collects until nothing is left: a download that its pull gave up may
// still land.
func (n *node) settle() {
	n.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		_, err := n.set.Collect(n.Context())
		n.must(err)
		if n.layers() == 0 && n.blobCount() == 0 {
			return
		}
		<-tick.C
	}
	n.Errorf("%d layers and %d blobs were left", n.layers(), n.blobCount())
}

func text(name, body string) registrytest.File { return registrytest.Text(name, body) }

// base, and one that stands on the same first layer.
func sample(t *testing.T) (one, two registrytest.Image) {
	t.Helper()
	bottom := registrytest.Gzip(t, registrytest.Tar(t, text("a", "1"), text("b", "1")))
	runs := registrytest.Runs(ocispec.ImageConfig{
		User: "1:2", Env: []string{"A=b"}, Cmd: []string{"/bin/a"}, Entrypoint: []string{"/sh"}, WorkingDir: "/w", StopSignal: "SIGINT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, Volumes: map[string]struct{}{"/data": {}}, Labels: map[string]string{"k": "v"},
	})
	one = registrytest.Make(t, []registrytest.Layer{
		bottom, registrytest.Zstd(t, registrytest.Tar(t, text("b", "2"), text("c", "2"))), registrytest.Plain(t, registrytest.Tar(t, text(".wh.a", ""))),
	}, runs)
	two = registrytest.Make(t, []registrytest.Layer{bottom, registrytest.Gzip(t, registrytest.Tar(t, text("other", "3")))})
	return one, two
}

func TestPull(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "lib/one", "v1", one)
	ref := r.Host() + "/lib/one:v1"
	var mu sync.Mutex
	phases := map[spec.Phase]bool{}
	got, err := n.set.Pull(t.Context(), spec.PullRequest{Reference: ref}, func(p spec.Progress) {
		if !mu.TryLock() {
			t.Error("progress from two goroutines at once")
			return
		}
		defer mu.Unlock()
		phases[p.Phase] = true
	})
	n.must(err)
	if !phases[spec.Resolving] || !phases[spec.Fetching] || !phases[spec.Unpacking] {
		t.Errorf("phases %v", phases)
	}
	config := spec.ImageConfig{
		User: "1:2", Env: []string{"A=b"}, Command: []string{"/bin/a"}, Entrypoint: []string{"/sh"}, WorkDir: "/w", StopSignal: "SIGINT",
		ExposedPorts: []spec.Exposed{"80/tcp"}, Volumes: []string{"/data"}, Labels: map[string]string{"k": "v"},
	}
	if got.ID != one.ConfigAt.Digest.String() || got.Manifest != one.Manifest.Digest.String() || len(got.Layers) != 3 || got.Size != 4 ||
		!slices.Equal(got.Names, []string{ref}) || got.Platform != "linux/amd64" || fmt.Sprint(got.Config) != fmt.Sprint(config) {
		t.Errorf("pulled %+v", got)
	}
	want := map[string]string{"b": "2", "c": "2"}
	if files := n.files(got); fmt.Sprint(files) != fmt.Sprint(want) {
		t.Errorf("files %v, want %v", files, want)
	}
	n.restart()
	again, err := n.set.Get(t.Context(), ref)
	n.must(err)
	if fmt.Sprint(again) != fmt.Sprint(got) {
		t.Errorf("after a restart:\n got %+v\nwant %+v", again, got)
	}

	// What is here costs no download.
	before := len(r.Requests("GET", "/blobs/"))
	n.pull(ref)
	if after := len(r.Requests("GET", "/blobs/")); after != before {
		t.Errorf("a second pull asked for %d blobs", after-before)
	}
}

func TestPullSharesLayers(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "one", "v1", one)
	r.Push(t, "two", "v1", two)
	ref := r.Host() + "/one:v1"
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := ref
			if i%2 == 0 {
				name = r.Host() + "/two:v1"
			}
			if _, err := n.set.Pull(t.Context(), spec.PullRequest{Reference: name}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := n.layers(); got != 4 {
		t.Errorf("%d layers, want the 3 of one and the 1 more of two", got)
	}
	for _, l := range one.Layers {
		if got := len(r.Requests("GET", "/blobs/"+l.Digest.String())); got != 1 {
			t.Errorf("layer %s was downloaded %d times", l.Digest, got)
		}
	}
}

func TestPullFails(t *testing.T) {
	good := registrytest.Gzip(t, registrytest.Tar(t, text("a", "1")))
	for name, c := range map[string]struct {
		layer registrytest.Layer
		fault *registrytest.Fault
		kind  errs.Kind
	}{
		"wrong diff ID": {registrytest.Layer{Descriptor: good.Descriptor, DiffID: digest.FromString("other")}, nil, errs.Invalid},
		"climbs out":    {registrytest.Gzip(t, registrytest.Tar(t, text("../a", "1"))), nil, errs.Invalid},
		"no tar":        {registrytest.Gzip(t, []byte(strings.Repeat("no tar", 1000))), nil, errs.Invalid},
		"bomb":          {registrytest.Gzip(t, registrytest.Tar(t, text("zeros", strings.Repeat("\x00", 9<<20)))), nil, errs.Exhausted},
		"wrong bytes":   {good, &registrytest.Fault{Match: registrytest.Blobs(good.Digest), Handler: registrytest.Flip()}, errs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			n, r := newNode(t), registrytest.New(t)
			bottom := registrytest.Gzip(t, registrytest.Tar(t, text("bottom", "1")))
			r.Push(t, "bad", "v1", registrytest.Make(t, []registrytest.Layer{bottom, c.layer}))
			if c.fault != nil {
				r.Break(*c.fault)
			}
			_, err := n.set.Pull(t.Context(), spec.PullRequest{Reference: r.Host() + "/bad:v1"}, nil)
			n.want(c.kind, err, "pull")
			if images, _ := n.set.List(t.Context(), nil); len(images) != 0 {
				t.Errorf("images were left: %v", images)
			}
			n.settle()
		})
	}
}

func TestPullCanceledIsTakenOver(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "one", "v1", one)
	gate, reached := make(chan struct{}), make(chan struct{})
	var once sync.Once
	first := one.Layers[0].Digest
	r.Break(registrytest.Fault{Match: registrytest.Blobs(first), Handler: func(w http.ResponseWriter, req *http.Request, app http.Handler) {
		once.Do(func() { close(reached) })
		<-gate
		app.ServeHTTP(w, req)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := n.set.Pull(ctx, spec.PullRequest{Reference: r.Host() + "/one:v1"}, nil)
		if errs.KindOf(err) != errs.Canceled {
			t.Errorf("the canceled pull: %v", err)
		}
	})
	<-reached
	waiting := make(chan struct{})
	var told sync.Once
	wg.Go(func() {
		_, err := n.set.Pull(t.Context(), spec.PullRequest{Reference: r.Host() + "/one:v1"}, func(p spec.Progress) {
			if p.Phase == spec.Unpacking && p.Status == "waiting" {
				told.Do(func() { close(waiting) })
			}
		})
		if err != nil {
			t.Errorf("the other pull: %v", err)
		}
	})
	<-waiting
	cancel()
	close(gate)
	wg.Wait()
}

func TestGet(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "lib/one", "latest", one)
	r.Push(t, "two", "v2", two)
	a, b := n.pull(r.Host()+"/lib/one"), n.pull(r.Host()+"/two:v2")
	n.must(n.set.Tag(t.Context(), a.ID, "alias"))
	hex := strings.TrimPrefix(a.ID, "sha256:")
	for _, ref := range []string{
		r.Host() + "/lib/one", r.Host() + "/lib/one:latest", "alias", "docker.io/library/alias:latest", a.ID, a.Manifest, hex, hex[:12], "sha256:" + hex[:20],
		r.Host() + "/lib/one@" + a.Manifest,
	} {
		got, err := n.set.Get(t.Context(), ref)
		if err != nil || got.ID != a.ID {
			t.Errorf("get %s: %s, %v", ref, got.ID, err)
		}
	}
	for ref, kind := range map[string]errs.Kind{
		"none": errs.NotFound, r.Host() + "/two": errs.NotFound, r.Host() + "/two@" + a.Manifest: errs.NotFound,
		"sha256:" + strings.Repeat("0", 64): errs.NotFound, "UPPER": errs.Invalid, "": errs.Invalid, "sha256:": errs.Invalid,
	} {
		_, err := n.set.Get(t.Context(), ref)
		n.want(kind, err, "get "+ref)
	}
	// A name of hexadecimal digits goes before an ID that begins so.
	n.must(n.set.Tag(t.Context(), b.ID, hex[:8]))
	if got, err := n.set.Get(t.Context(), hex[:8]); err != nil || got.ID != b.ID {
		t.Errorf("get of a name like an ID: %v, %v", got.ID, err)
	}
}

func TestList(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "lib/one", "v1", one)
	r.Push(t, "two", "v2", two)
	a, b := n.pull(r.Host()+"/lib/one:v1"), n.pull(r.Host()+"/two:v2")
	n.must(n.set.Tag(t.Context(), a.ID, "alpine:3.20"))
	n.must(n.set.Tag(t.Context(), a.ID, r.Host()+"/two:v2")) // b is left without a name
	n.users[a.ID] = []string{"c1", "c2"}
	all := []string{a.ID, b.ID}
	for text, c := range map[string]struct {
		filter spec.Filter
		want   []string
	}{
		"all":           {nil, all},
		"reference":     {spec.Filter{"reference": {"alpine"}}, []string{a.ID}},
		"pattern":       {spec.Filter{"reference": {"al*:3*"}}, []string{a.ID}},
		"either":        {spec.Filter{"reference": {"none", "alpine:*"}}, []string{a.ID}},
		"no reference":  {spec.Filter{"reference": {"busybox"}}, nil},
		"label":         {spec.Filter{"label": {"k"}}, []string{a.ID}},
		"label value":   {spec.Filter{"label": {"k=v"}}, []string{a.ID}},
		"labels":        {spec.Filter{"label": {"k=v", "x"}}, nil},
		"dangling":      {spec.Filter{"dangling": {"true"}}, []string{b.ID}},
		"not dangling":  {spec.Filter{"dangling": {"false"}}, []string{a.ID}},
		"two keys":      {spec.Filter{"dangling": {"true"}, "label": {"k"}}, nil},
		"before itself": {spec.Filter{"before": {"alpine:3.20"}}, nil},
		"until":         {spec.Filter{"until": {"1h"}}, all},
		"id":            {spec.Filter{"id": {a.ID[:20]}}, []string{a.ID}},
	} {
		images, err := n.set.List(t.Context(), c.filter)
		n.must(err)
		var got []string
		for _, i := range images {
			got = append(got, i.ID)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", text, got, c.want)
		}
	}
	for _, filter := range []spec.Filter{{"color": {"red"}}, {"dangling": {"maybe"}}, {"reference": {"["}}, {"until": {"soon"}}} {
		_, err := n.set.List(t.Context(), filter)
		n.want(errs.Invalid, err, fmt.Sprint(filter))
	}
	wantNotes := []string{"pull " + r.Host() + "/lib/one:v1", "pull " + r.Host() + "/two:v2", "tag alpine:3.20", "tag " + r.Host() + "/two:v2"}
	if !slices.Equal(n.notes, wantNotes) {
		t.Errorf("notes %q, want %q", n.notes, wantNotes)
	}
	if i, _ := n.set.Get(t.Context(), a.ID); i.Containers != 2 {
		t.Errorf("%d containers, want 2", i.Containers)
	}
}

func TestRemove(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "one", "v1", one)
	r.Push(t, "two", "v1", two)
	a, b := n.pull(r.Host()+"/one:v1"), n.pull(r.Host()+"/two:v1")
	n.must(n.set.Tag(t.Context(), a.ID, "alias"))

	removed, err := n.set.Remove(t.Context(), "alias", false)
	n.must(err)
	if len(removed) != 1 || removed[0].Untagged != "alias:latest" {
		t.Errorf("removed %v, want the name only", removed)
	}
	n.must(n.set.Tag(t.Context(), a.ID, "alias"))
	_, err = n.set.Remove(t.Context(), a.ID, false)
	n.want(errs.Conflict, err, "remove of an ID with two names")
	n.users[a.ID] = []string{"container"}
	_, err = n.set.Remove(t.Context(), a.ID, true)
	n.must(err)
	if i, err := n.set.Get(t.Context(), a.ID); err != nil || len(i.Names) != 0 {
		t.Errorf("an image in use lost more than its names: %v, %v", i.Names, err)
	}
	_, err = n.set.Remove(t.Context(), a.ID, true)
	n.want(errs.Conflict, err, "remove of what is in use")

	top, err := n.set.Chain(t.Context(), a.ID)
	n.must(err)
	_, err = n.snapshots.Prepare(t.Context(), "container", top, nil)
	n.must(err)
	delete(n.users, a.ID)
	removed, err = n.set.Remove(t.Context(), a.ID[7:19], false)
	n.must(err)
	if len(removed) != 1 || removed[0].Deleted != a.ID {
		t.Errorf("removed %v", removed)
	}
	if got := n.layers(); got != 5 {
		t.Errorf("%d snapshots, want those under the container kept", got)
	}
	n.must(n.snapshots.Remove(t.Context(), "container"))
	freed, err := n.set.Collect(t.Context())
	n.must(err)
	if got := n.layers(); got != 2 || freed == 0 {
		t.Errorf("%d layers, want the 2 of the other image; %d bytes freed", got, freed)
	}
	if files := n.files(b); files["other"] != "3" || files["a"] != "1" {
		t.Errorf("the other image was hurt: %v", files)
	}
	_, err = n.set.Remove(t.Context(), b.ID, false)
	n.must(err)
	if layers, blobs := n.layers(), n.blobCount(); layers != 0 || blobs != 0 {
		t.Errorf("%d layers and %d blobs were left", layers, blobs)
	}
	_, err = n.set.Remove(t.Context(), b.ID, false)
	n.want(errs.NotFound, err, "remove again")
	n.restart()
	if images, _ := n.set.List(t.Context(), nil); len(images) != 0 {
		t.Errorf("after a restart there are %v", images)
	}
}

func TestPrune(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "one", "v1", one)
	r.Push(t, "two", "v1", two)
	a, b := n.pull(r.Host()+"/one:v1"), n.pull(r.Host()+"/two:v1")
	n.must(n.set.Tag(t.Context(), b.ID, r.Host()+"/one:v1"))
	pruned, err := n.set.Prune(t.Context(), false, nil)
	n.must(err)
	if !slices.Equal(pruned.Removed, []string{a.ID}) || pruned.Reclaimed <= 0 {
		t.Errorf("pruned %+v, want the one without a name", pruned)
	}
	n.users[b.ID] = []string{"container"}
	pruned, err = n.set.Prune(t.Context(), true, nil)
	n.must(err)
	if len(pruned.Removed) != 0 {
		t.Errorf("pruned %v, which is in use", pruned.Removed)
	}
	delete(n.users, b.ID)
	pruned, err = n.set.Prune(t.Context(), true, spec.Filter{"until": {time.Now().Add(-time.Hour * 24 * 365 * 50).Format(time.RFC3339)}})
	n.must(err)
	if len(pruned.Removed) != 0 {
		t.Errorf("pruned %v against the filter", pruned.Removed)
	}
	pruned, err = n.set.Prune(t.Context(), true, nil)
	n.must(err)
	if len(pruned.Removed) != 1 || n.layers() != 0 || n.blobCount() != 0 {
		t.Errorf("pruned %v, %d layers and %d blobs left", pruned.Removed, n.layers(), n.blobCount())
	}
}

func TestHistoryAndUsage(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "one", "v1", one)
	r.Push(t, "two", "v1", two)
	a := n.pull(r.Host() + "/one:v1")
	n.pull(r.Host() + "/two:v1")
	history, err := n.set.History(t.Context(), a.ID)
	n.must(err)
	if len(history) != 3 || history[0].CreatedBy != "layer 2" || history[2].Size != 2 || history[2].DiffID != a.Layers[0] {
		t.Errorf("history %+v", history)
	}
	n.users[a.ID] = []string{"container"}
	usage, err := n.set.DiskUsage(t.Context())
	n.must(err)
	images, blobs := usage.Images, usage.Blobs
	if images.Total != 2 || images.Active != 1 || images.Size <= images.Reclaimable || images.Reclaimable <= 0 {
		t.Errorf("images %+v", images)
	}
	if blobs.Total != 8 || blobs.Active != 5 || blobs.Size <= blobs.Reclaimable || blobs.Reclaimable <= 0 {
		t.Errorf("blobs %+v", blobs)
	}
}

// A layer that was lost is unpacked again from its blob, without a registry.
func TestChainAfterLoss(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "one", "v1", one)
	a := n.pull(r.Host() + "/one:v1")
	before := n.files(a)
	top, err := n.set.Chain(t.Context(), a.ID)
	n.must(err)
	info, err := n.snapshots.Stat(t.Context(), top)
	n.must(err)
	n.must(n.snapshots.Remove(t.Context(), top))
	n.must(n.snapshots.Remove(t.Context(), info.Parent))
	r.Break(registrytest.Fault{Handler: registrytest.Status(http.StatusServiceUnavailable)})
	n.must(n.set.Repair(t.Context()))
	if after := n.files(a); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("files %v, want %v", after, before)
	}
}

func TestPush(t *testing.T) {
	n, r, other := newNode(t), registrytest.New(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "one", "v1", one)
	a := n.pull(r.Host() + "/one:v1")
	to := other.Host() + "/mine/one:v2"
	n.want(errs.NotFound, n.set.Push(t.Context(), spec.PushRequest{Reference: to}, nil), "push of no image")
	n.must(n.set.Tag(t.Context(), a.ID, to))
	n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: to}, nil))
	second := newNode(t)
	if got := second.pull(to); got.Manifest != a.Manifest || got.ID != a.ID {
		t.Errorf("pulled back %s, pushed %s", got.Manifest, a.Manifest)
	}
}

func TestCommit(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "one", "v1", one)
	base := n.pull(r.Host() + "/one:v1")
	top, err := n.set.Chain(t.Context(), base.ID)
	n.must(err)
	_, err = n.snapshots.Prepare(t.Context(), "container", top, nil)
	n.must(err)
	target := t.TempDir()
	n.must(n.snapshots.Mount(t.Context(), "container", target))
	n.must(os.WriteFile(filepath.Join(target, "new"), []byte("mine"), 0o644))
	n.must(os.Remove(filepath.Join(target, "b")))
	committed, err := n.set.Commit(t.Context(), base, "container", base.Config, spec.CommitRequest{
		Reference: "mine:v1", Author: "me", Message: "why", Changes: []string{`CMD ["/new"]`, "ENV X=y"},
	}, nil)
	n.must(err)
	want := map[string]string{"c": "2", "new": "mine"}
	if files := n.files(committed); fmt.Sprint(files) != fmt.Sprint(want) {
		t.Errorf("files %v, want %v", files, want)
	}
	if len(committed.Layers) != 4 || !slices.Equal(committed.Config.Command, []string{"/new"}) || !slices.Contains(committed.Config.Env, "X=y") ||
		committed.Author != "me" || !slices.Equal(committed.Names, []string{"docker.io/library/mine:v1"}) || committed.Config.User != "1:2" {
		t.Errorf("committed %+v", committed)
	}
	history, err := n.set.History(t.Context(), "mine:v1")
	n.must(err)
	if len(history) != 4 || history[0].Comment != "why" || history[0].Size != 4 {
		t.Errorf("history %+v", history)
	}
	// It is an image like any other: pushed and pulled elsewhere it is equal.
	to := r.Host() + "/mine:v1"
	n.must(n.set.Tag(t.Context(), committed.ID, to))
	n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: to}, nil))
	second := newNode(t)
	if got := second.pull(to); got.ID != committed.ID || fmt.Sprint(second.files(got)) != fmt.Sprint(want) {
		t.Errorf("pulled back %+v", got)
	}
	for _, req := range []spec.CommitRequest{{Reference: "UPPER"}, {Reference: "a@" + base.ID}, {Changes: []string{"FROM x"}}} {
		_, err = n.set.Commit(t.Context(), base, "container", base.Config, req, nil)
		n.want(errs.Invalid, err, fmt.Sprintf("commit %+v", req))
	}
	_, err = n.set.Commit(t.Context(), base, "none", base.Config, spec.CommitRequest{}, nil)
	n.want(errs.NotFound, err, "commit of no snapshot")
	if images, _ := n.set.List(t.Context(), nil); len(images) != 2 {
		t.Errorf("%d images, want 2", len(images))
	}
}

// A full disk in the middle of a pull leaves no image, and another try works.
func TestPullOnFullDisk(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "one", "v1", one)
	ref := r.Host() + "/one:v1"
	for _, operation := range []string{"Ingest", "IngestCommit"} {
		n.snapshots.Fail = func(op string) error {
			if op == operation {
				return errs.New(errs.Exhausted, "no space left")
			}
			return nil
		}
		_, err := n.set.Pull(t.Context(), spec.PullRequest{Reference: ref}, nil)
		n.want(errs.Exhausted, err, "pull on a full disk")
	}
	n.snapshots.Fail = nil
	n.pull(ref)
	if n.layers() != 3 {
		t.Errorf("%d layers", n.layers())
	}
}

func TestArchives(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "one", "v1", one)
	a := n.pull(r.Host() + "/one:v1")
	n.must(n.set.Tag(t.Context(), a.ID, "mine:v1"))
	for _, format := range []string{"oci-archive", "docker-archive"} {
		var archive bytes.Buffer
		n.must(n.set.Save(t.Context(), []string{"mine:v1"}, format, &archive))
		second := newNode(t)
		images, err := second.set.Load(t.Context(), iotest.HalfReader(&archive), nil)
		second.must(err)
		if len(images) != 1 || images[0].ID != a.ID || !slices.Equal(images[0].Names, []string{"docker.io/library/mine:v1"}) {
			t.Fatalf("%s: loaded %+v", format, images)
		}
		if fmt.Sprint(second.files(images[0])) != fmt.Sprint(n.files(a)) {
			t.Errorf("%s: loaded files differ", format)
		}
	}
	n.want(errs.NotFound, n.set.Save(t.Context(), []string{"none"}, "oci-archive", io.Discard), "save of no image")
	n.want(errs.Invalid, n.set.Save(t.Context(), []string{"mine:v1"}, "zip", io.Discard), "save in no format")
	_, err := n.set.Load(t.Context(), strings.NewReader("no archive"), nil)
	n.want(errs.Invalid, err, "load of no archive")
}
