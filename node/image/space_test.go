package image_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/base/errs"
	"berth/image/catalog"
	"berth/image/registrytest"
	"berth/node/image"
	"berth/spec"
)

func (n *node) space() *image.Space { return n.set.Space(kube) }

func (n *node) pullInto(ref string) string {
	n.Helper()
	id, err := n.space().Pull(n.Context(), image.SpacePull{PullRequest: spec.PullRequest{Reference: ref}, Labels: map[string]string{"of": "kube"}})
	n.must(err)
	return id
}

func (n *node) spaced(ref string) image.Spaced {
	n.Helper()
	i, err := n.space().Get(ref)
	n.must(err)
	return i
}

func TestSpace(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	for _, tag := range []string{"v1", "v2", "latest"} {
		r.Push(t, "lib/one", tag, one)
	}
	r.Push(t, "other/one", "v1", one)
	repo, id := r.Host()+"/lib/one", one.ConfigAt.Digest.String()
	by := repo + "@" + one.Manifest.Digest.String()
	for _, ref := range []string{repo + ":v1", repo, r.Host() + "/other/one:v1", by} {
		if got := n.pullInto(ref); got != id {
			t.Fatalf("pulled %s: %s", ref, got)
		}
	}
	check := func() {
		t.Helper()
		i := n.spaced(id)
		if want := []string{repo + ":latest", repo + ":v1", r.Host() + "/other/one:v1"}; !slices.Equal(i.Tags(), want) {
			t.Errorf("tags %v, want %v", i.Tags(), want)
		}
		if want := []string{by, r.Host() + "/other/one@" + one.Manifest.Digest.String()}; !slices.Equal(i.Digests(), want) {
			t.Errorf("digests %v, want %v", i.Digests(), want)
		}
		if i.Size != 4 || i.Config.User != "1:2" || i.Label("of") != "kube" || len(n.space().List()) != 1 {
			t.Errorf("%+v", i)
		}
		for _, ref := range []string{repo, repo + ":v1", by, id[:20], id[len("sha256:"):], i.Digests()[1]} {
			if got := n.spaced(ref); got.ID != id {
				t.Errorf("%s is %s", ref, got.ID)
			}
		}
	}
	check()
	n.restart()
	check()
	_, err := n.space().Get(repo + ":v2")
	n.want(errs.NotFound, err, "a tag that was not pulled")
	_, err = n.space().Get(strings.Repeat("0", 64))
	n.want(errs.NotFound, err, "an ID that nothing has")
	if top, err := n.space().Chain(t.Context(), by); err != nil || top == "" {
		t.Error(top, err)
	}

	// The tag moves on; the digest stays.
	r.Push(t, "lib/one", "v1", two)
	if got := n.pullInto(repo + ":v1"); got == id {
		t.Error("still the old image")
	}
	if i := n.spaced(by); i.ID != id || slices.Contains(i.Tags(), repo+":v1") {
		t.Errorf("%+v", i)
	}

	// By one name all go, and with them what is on disk.
	for _, ref := range []string{r.Host() + "/other/one:v1", repo + ":v1"} {
		n.must(n.space().Remove(t.Context(), ref))
		n.want(errs.NotFound, n.space().Remove(t.Context(), ref), "again")
	}
	_, err = n.space().Get(id)
	n.want(errs.NotFound, err, "get what was removed")
	if all := n.space().List(); len(all) != 0 {
		t.Error("left:", all)
	}
	n.settle()
	if all, _ := n.set.List(t.Context(), nil); len(all) != 0 {
		t.Error("left:", all)
	}
}

// What one side names the other sees, and neither takes it from the other.
func TestSpaceBesideTheNodesOwn(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "lib/one", "v1", one)
	ref := r.Host() + "/lib/one:v1"
	id := n.pullInto(ref)
	own := n.own(ref)
	if own.ID != id || !slices.Equal(own.Names, []string{ref}) {
		t.Fatalf("people do not see it: %+v", own)
	}
	n.pull(ref)
	n.must(n.space().Remove(t.Context(), id))
	if got := n.own(ref); got.ID != id {
		t.Error("gone with the names of others")
	}
	_, err := n.space().Get(id)
	n.want(errs.NotFound, err, "get an image without names in the space")

	// The same name for another image: each keeps its own.
	n.pullInto(ref)
	r.Push(t, "lib/one", "v1", two)
	n.pull(ref)
	if got := n.own(ref); got.ID == id {
		t.Error("the node's own name has not moved")
	}
	if n.spaced(ref).ID != id {
		t.Error("the other one has")
	}
	if got := n.own(id); len(got.Names) != 1 || got.Names[0] == ref {
		t.Errorf("one name for two images: %v", got.Names)
	}
	_, err = n.set.Remove(t.Context(), ref, false)
	n.must(err)
	_, err = n.set.Remove(t.Context(), ref, false) // now it is the space's name
	n.must(err)
	_, err = n.set.Remove(t.Context(), id, true)
	n.want(errs.Conflict, err, "remove what only the space names")
	n.pull(ref)
	n.must(n.set.Tag(t.Context(), ref, "further:1"))
	n.pullInto(ref)
	there := n.spaced(ref)
	if removed, err := n.set.Remove(t.Context(), there.ID, true); err != nil || len(removed) != 2 {
		t.Errorf("removed by ID: %+v, %v", removed, err)
	}
	n.pull(ref)
	_, err = n.set.Prune(t.Context(), true, nil)
	n.must(err)
	for _, i := range []image.Spaced{there, n.spaced(id)} {
		got := n.spaced(i.ID)
		if len(got.Names) != len(i.Names) {
			t.Errorf("names of the space are gone: %+v of %+v", got.Names, i.Names)
		}
		n.must(n.space().Remove(t.Context(), i.ID))
	}
	_, err = n.set.Prune(t.Context(), true, nil)
	n.must(err)
	n.settle()
}

func (n *node) own(ref string) spec.Image {
	n.Helper()
	i, err := n.set.Get(n.Context(), ref)
	n.must(err)
	return i
}

// What a client imports is an image of the space as soon as all of it is here.
func TestSpaceGivenByClients(t *testing.T) {
	one, _ := sample(t)
	n := newNode(t)
	for d, body := range one.Blobs {
		if d != one.ConfigAt.Digest {
			_, err := n.blobs.Put(t.Context(), body)
			n.must(err)
		}
	}
	_, err := n.set.CreateName(t.Context(), kube, "", catalog.Record{Name: "docker.io/library/given:1", Target: one.Manifest})
	n.must(err)
	_, err = n.space().Get("given:1")
	n.want(errs.NotFound, err, "get what is not whole")
	_, err = n.blobs.Put(t.Context(), one.Blobs[one.ConfigAt.Digest])
	n.must(err)
	n.set.Arrived(t.Context(), one.ConfigAt.Digest)
	i := n.spaced("given:1")
	if i.ID != one.ConfigAt.Digest.String() || i.Size == 0 || len(i.Digests()) != 1 {
		t.Errorf("%+v", i)
	}
	n.restart()
	if top, err := n.space().Chain(t.Context(), "given:1"); err != nil || top == "" {
		t.Error(top, err)
	}
	n.must(n.set.DeleteName(t.Context(), kube, "docker.io/library/given:1", ""))
	_, err = n.space().Get(i.ID)
	n.want(errs.NotFound, err, "get what has no name")
	n.settle()
}

// An image in use goes after its containers.
func TestSpaceRemoveInUse(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "lib/one", "v1", one)
	id := n.pullInto(r.Host() + "/lib/one:v1")
	n.users[id] = []string{"container"}
	n.must(n.space().Remove(t.Context(), id))
	_, err := n.set.Collect(t.Context())
	n.must(err)
	if n.layers() != len(one.Layers) {
		t.Error("a container's layers were taken away")
	}
	delete(n.users, id)
	n.settle()
}

// A pull of which nothing comes ends; one that waits for another's layer, of
// which something comes, does not, and the layer is fetched once.
func TestSpacePullStalls(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "lib/one", "v1", one)
	ref := r.Host() + "/lib/one:v1"
	r.Break(registrytest.Fault{Match: registrytest.Blobs(one.Layers[0].Digest), Handler: registrytest.Stall(3)})
	begun := time.Now()
	_, err := n.space().Pull(t.Context(), image.SpacePull{PullRequest: spec.PullRequest{Reference: ref}, Patience: 300 * time.Millisecond})
	n.want(errs.Timeout, err, "pull from a registry that says no more")
	if took := time.Since(begun); took > 30*time.Second {
		t.Error("after", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = n.space().Pull(ctx, image.SpacePull{PullRequest: spec.PullRequest{Reference: ref}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error("a client that gave up:", err)
	}
	r.Mend()
	n.pullInto(ref)
	if n.spaced(ref).Size != 4 {
		t.Error("not whole")
	}
}

func TestSpacePullsJoin(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, _ := sample(t)
	r.Push(t, "lib/one", "v1", one)
	ref := r.Host() + "/lib/one:v1"
	var pulls sync.WaitGroup
	for range 8 {
		pulls.Go(func() {
			if _, err := n.space().Pull(t.Context(), image.SpacePull{PullRequest: spec.PullRequest{Reference: ref}, Patience: time.Minute}); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	if got := len(r.Requests("GET", "/blobs/"+one.Layers[0].Digest.String())); got != 1 {
		t.Errorf("a layer was fetched %d times", got)
	}
}

func TestFootprint(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "lib/one", "v1", one)
	r.Push(t, "lib/two", "v1", two)
	var last image.Footprint
	for _, step := range []func(){
		func() { n.pullInto(r.Host() + "/lib/one:v1") },
		func() { n.pullInto(r.Host() + "/lib/two:v1") },
	} {
		step()
		f, err := n.set.Footprint(t.Context())
		n.must(err)
		if f.Bytes <= last.Bytes || f.Inodes <= last.Inodes || f.At.IsZero() {
			t.Errorf("after a pull %+v, before %+v", f, last)
		}
		last = f
	}
	if f, _ := n.set.Footprint(t.Context()); f != last {
		t.Errorf("measured again at once: %+v", f)
	}
	n.must(n.space().Remove(t.Context(), r.Host()+"/lib/two:v1"))
	if f, _ := n.set.Footprint(t.Context()); f.Bytes >= last.Bytes {
		t.Errorf("after a removal %+v, before %+v", f, last)
	}
}
