package image_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/image/archive"
	"berth/image/registrytest"
	"berth/node/image"
	"berth/node/snapshot"
	"berth/spec"
)

// layerBlobs counts the blobs of the image's layers that are here.
func (n *node) layerBlobs(i registrytest.Image) (count int) {
	for _, l := range i.Layers {
		if n.blobs.Has(l.Digest) {
			count++
		}
	}
	return count
}

// change makes a container on i, writes a file in it and commits that.
func (n *node) change(i spec.Image, req spec.CommitRequest) spec.Image {
	n.Helper()
	top, err := n.set.Chain(n.Context(), i.ID)
	n.must(err)
	_, err = n.snapshots.Prepare(n.Context(), "container", top, nil)
	n.must(err)
	target := n.TempDir()
	n.must(n.snapshots.Mount(n.Context(), "container", target))
	n.must(os.WriteFile(filepath.Join(target, "new"), []byte("mine"), 0o644))
	made, err := n.set.Commit(n.Context(), i, "container", i.Config, req, nil)
	n.must(err)
	n.must(n.snapshots.Unmount(n.Context(), target))
	n.must(n.snapshots.Remove(n.Context(), "container"))
	return made
}

func TestPolicyOfPulledLayers(t *testing.T) {
	one, _ := sample(t)
	for policy, want := range map[image.Policy]int{"": 3, image.Keep: 3, image.UntilPushed: 0, image.Drop: 0} {
		t.Run(string(policy), func(t *testing.T) {
			n, r := newNode(t, offers, follows(policy)), registrytest.New(t)
			r.Push(t, "one", "v1", one)
			a := n.pull(r.Host() + "/one:v1")
			if got := n.layerBlobs(one); got != want {
				t.Errorf("%d blobs of layers are here, want %d", got, want)
			}
			if !n.blobs.Has(one.Manifest.Digest) || !n.blobs.Has(one.ConfigAt.Digest) {
				t.Error("the manifest or the configuration is not here")
			}
			top, err := n.set.Chain(t.Context(), a.ID)
			n.must(err)
			if !n.offering().settledTop(top) {
				t.Error("the image was not settled")
			}
			n.pull(r.Host() + "/one:v1")
			for _, l := range one.Layers {
				if got := len(r.Requests("GET", "/blobs/"+l.Digest.String())); got != 1 {
					t.Errorf("layer %s was downloaded %d times", l.Digest, got)
				}
			}
			if got := len(files(t, filepath.Join(n.dir, "blobs"))); got != want+2 {
				t.Errorf("%d files among the blobs, want %d", got, want+2)
			}
		})
	}
}

// files lists the files below dir, but for the store's mark of the boot.
func files(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "boot" {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A stream that is not stored is verified all the same.
func TestPassedLayersAreVerified(t *testing.T) {
	one, _ := sample(t)
	for name, handler := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){"flipped": registrytest.Flip()} {
		n, r := newNode(t, offers, follows(image.Drop)), registrytest.New(t)
		r.Push(t, "one", "v1", one)
		r.Break(registrytest.Fault{Match: registrytest.Blobs(one.Layers[1].Digest), Handler: handler})
		_, err := n.set.Pull(t.Context(), spec.PullRequest{Reference: r.Host() + "/one:v1"}, nil)
		n.want(errs.Invalid, err, name)
		n.settle()
	}
}

// A change of the setting takes effect with the next start.
func TestPolicyChanges(t *testing.T) {
	one, _ := sample(t)
	n, r := newNode(t, offers), registrytest.New(t)
	r.Push(t, "one", "v1", one)
	a := n.pull(r.Host() + "/one:v1")
	n.policy = image.UntilPushed
	n.restart()
	freed, err := n.set.Collect(t.Context())
	n.must(err)
	if n.layerBlobs(one) != 0 || freed == 0 {
		t.Errorf("%d blobs were left, %d bytes freed", n.layerBlobs(one), freed)
	}
	n.policy = image.Keep
	n.restart()
	if got := n.pull(r.Host() + "/one:v1"); got.ID != a.ID || n.layerBlobs(one) != 3 {
		t.Errorf("%d blobs came with the next pull", n.layerBlobs(one))
	}
}

func TestPushWithoutBlobs(t *testing.T) {
	one, _ := sample(t)
	for name, c := range map[string]struct {
		prepare func(n *node, from *registrytest.Registry)
		kind    errs.Kind
	}{
		"from where it was pulled": {func(*node, *registrytest.Registry) {}, ""},
		"nowhere to be had": {func(_ *node, from *registrytest.Registry) {
			from.Break(registrytest.Fault{Match: registrytest.Blobs(one.Layers[0].Digest), Handler: registrytest.Status(http.StatusNotFound)})
		}, errs.NotFound},
		"the source is down": {func(_ *node, from *registrytest.Registry) {
			from.Break(registrytest.Fault{Match: registrytest.Blobs(one.Layers[0].Digest), Handler: registrytest.Status(http.StatusForbidden)})
		}, errs.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			n, from, to := newNode(t, follows(image.UntilPushed)), registrytest.New(t), registrytest.New(t)
			from.Push(t, "one", "v1", one)
			a := n.pull(from.Host() + "/one:v1")
			n.restart()
			c.prepare(n, from)
			name := to.Host() + "/mine:v1"
			n.must(n.set.Tag(t.Context(), a.ID, name))
			err := n.set.Push(t.Context(), spec.PushRequest{Reference: name}, nil)
			if c.kind != "" {
				n.want(c.kind, err, "push")
				if err == nil || !strings.Contains(err.Error(), "pull "+from.Host()+"/one:v1 again with registry.blobs = \"keep\", or load") {
					t.Errorf("the error does not say what to do: %v", err)
				}
				return
			}
			n.must(err)
			if got := newNode(t).pull(name); got.Manifest != a.Manifest || got.ID != a.ID {
				t.Errorf("pulled back %s, pushed %s", got.Manifest, a.Manifest)
			}
			// What the registry has by now is neither sent nor fetched.
			before := len(from.Requests("GET", "/blobs/"))
			n.must(n.set.Tag(t.Context(), a.ID, to.Host()+"/elsewhere:v1"))
			n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: to.Host() + "/elsewhere:v1"}, nil))
			if got := len(from.Requests("GET", "/blobs/")); got != before {
				t.Errorf("%d blobs were fetched again for a mount", got-before)
			}
		})
	}
}

// What was committed here is pushed and saved with the same digests, whatever
// was kept of it.
func TestCommitWithoutBlob(t *testing.T) {
	one, _ := sample(t)
	for policy, kept := range map[image.Policy]bool{image.Keep: true, image.UntilPushed: true, image.Drop: false} {
		t.Run(string(policy), func(t *testing.T) {
			n, r := newNode(t, offers, follows(policy)), registrytest.New(t)
			r.Push(t, "one", "v1", one)
			made := n.change(n.pull(r.Host()+"/one:v1"), spec.CommitRequest{Reference: r.Host() + "/mine:v1", Sync: true})
			if n.offering().synced == 0 {
				t.Error("the layer is not durable")
			}
			blobs := n.usage().Blobs
			want := 4 // manifests and configurations
			if kept {
				want++
			}
			if policy == image.Keep {
				want += 3
			}
			if blobs.Total != want {
				t.Errorf("%d blobs are here, want %d", blobs.Total, want)
			}
			for _, format := range []string{archive.Docker, archive.OCI} {
				n.loadsBack(made, format)
			}
			n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: r.Host() + "/mine:v1"}, nil))
			second := newNode(t)
			back := second.pull(r.Host() + "/mine:v1")
			if back.Manifest != made.Manifest || fmt.Sprint(second.files(back)) != fmt.Sprint(n.files(made)) {
				t.Errorf("pulled back %+v", back)
			}
			if blobs := n.usage().Blobs; policy != image.Keep && blobs.Total != 4 {
				t.Errorf("after the push %d blobs are here", blobs.Total)
			}
		})
	}
}

// loadsBack saves an image and loads it on another node.
func (n *node) loadsBack(i spec.Image, format string) {
	n.Helper()
	var first, again bytes.Buffer
	n.must(n.set.Save(n.Context(), []string{i.ID}, format, &first))
	n.must(n.set.Save(n.Context(), []string{i.ID}, format, &again))
	if sha256.Sum256(first.Bytes()) != sha256.Sum256(again.Bytes()) {
		n.Errorf("%s: saved twice, the archives differ", format)
	}
	second := newNode(n.T)
	loaded, err := second.set.Load(n.Context(), &first, nil)
	second.must(err)
	if len(loaded) != 1 || loaded[0].ID != i.ID || fmt.Sprint(loaded[0].Layers) != fmt.Sprint(i.Layers) {
		n.Fatalf("%s: loaded %+v", format, loaded)
	}
	if format == archive.OCI && loaded[0].Manifest != i.Manifest {
		n.Errorf("%s: loaded manifest %s, saved %s", format, loaded[0].Manifest, i.Manifest)
	}
	if fmt.Sprint(second.files(loaded[0])) != fmt.Sprint(n.files(i)) {
		n.Errorf("%s: loaded files differ", format)
	}
}

// A docker-archive of layers without blobs takes no registry, and an
// oci-archive is as it was.
func TestSaveWithoutBlobs(t *testing.T) {
	one, _ := sample(t)
	n, r := newNode(t, offers, follows(image.Drop)), registrytest.New(t)
	r.Push(t, "one", "v1", one)
	a := n.pull(r.Host() + "/one:v1")
	n.loadsBack(a, archive.OCI)
	r.Break(registrytest.Fault{Handler: registrytest.Status(http.StatusForbidden)})
	n.loadsBack(a, archive.Docker)
	var archived bytes.Buffer
	err := n.set.Save(t.Context(), []string{a.ID}, archive.OCI, &archived)
	n.want(errs.Denied, err, "save of compressed layers without a registry")

	// What was damaged is told, and not saved.
	n.offering().mu.Lock()
	for key, tar := range n.offering().tars {
		n.offering().tars[key] = append(bytes.Clone(tar[:len(tar)-1]), 'x')
	}
	n.offering().mu.Unlock()
	err = n.set.Save(t.Context(), []string{a.ID}, archive.Docker, &archived)
	n.want(errs.Invalid, err, "save of a damaged layer")
}

// Loaded layers that nobody else has stay until they are pushed.
func TestPolicyOfLoadedLayers(t *testing.T) {
	one, _ := sample(t)
	var archived bytes.Buffer
	from, r := newNode(t), registrytest.New(t)
	r.Push(t, "one", "v1", one)
	from.must(from.set.Save(t.Context(), []string{from.pull(r.Host() + "/one:v1").ID}, archive.OCI, &archived))
	for policy, want := range map[image.Policy]int{image.Keep: 3, image.UntilPushed: 3, image.Drop: 2} { // the third is a plain tar
		n := newNode(t, offers, follows(policy))
		loaded, err := n.set.Load(t.Context(), bytes.NewReader(archived.Bytes()), nil)
		n.must(err)
		if got := n.layerBlobs(one); got != want {
			t.Errorf("%s: %d blobs of layers are here, want %d", policy, got, want)
		}
		name := r.Host() + "/" + string(policy) + ":v1"
		n.must(n.set.Tag(t.Context(), loaded[0].ID, name))
		n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: name}, nil))
		if got := n.layerBlobs(one); policy != image.Keep && got != 0 {
			t.Errorf("%s: %d blobs of layers are here after the push", policy, got)
		}
		if got := newNode(t).pull(name); got.Manifest != one.Manifest.Digest.String() {
			t.Errorf("%s: pulled back %s", policy, got.Manifest)
		}
	}
}

// A loaded layer that no registry has stays where its tar cannot be written
// again, whatever the policy.
func TestOnlyCopyStays(t *testing.T) {
	one, _ := sample(t)
	var archived bytes.Buffer
	from, r := newNode(t), registrytest.New(t)
	r.Push(t, "one", "v1", one)
	from.must(from.set.Save(t.Context(), []string{from.pull(r.Host() + "/one:v1").ID}, archive.OCI, &archived))
	n := newNode(t, offers, follows(image.Keep))
	loaded, err := n.set.Load(t.Context(), bytes.NewReader(archived.Bytes()), nil)
	n.must(err)
	store := n.offering()
	store.refuse = map[snapshot.Key]error{}
	for _, key := range n.keysOf(loaded[0]) {
		store.refuse[key] = errs.New(errs.Unsupported, "there is no recipe")
	}
	n.policy = image.Drop
	n.restart()
	_, err = n.set.Collect(t.Context())
	n.must(err)
	if got := n.layerBlobs(one); got != 3 {
		t.Errorf("%d blobs of layers are here", got)
	}
	clear(store.refuse)
	_, err = n.set.Collect(t.Context())
	n.must(err)
	if got := n.layerBlobs(one); got != 2 {
		t.Errorf("%d blobs of layers are here, the plain tar can be made again", got)
	}
}

// Layers that were lost come again from the registry where their blobs are
// not kept.
func TestChainAfterLossWithoutBlobs(t *testing.T) {
	one, _ := sample(t)
	n, r := newNode(t, offers, follows(image.Drop)), registrytest.New(t)
	r.Push(t, "one", "v1", one)
	a := n.pull(r.Host() + "/one:v1")
	before := n.files(a)
	top, err := n.set.Chain(t.Context(), a.ID)
	n.must(err)
	lose := func() {
		info, err := n.snapshots.Stat(t.Context(), top)
		n.must(err)
		n.must(n.snapshots.Remove(t.Context(), top))
		n.must(n.snapshots.Remove(t.Context(), info.Parent))
		n.restart()
	}
	lose()
	n.must(n.set.Repair(t.Context()))
	if after := n.files(a); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("files %v, want %v", after, before)
	}
	if got := n.layerBlobs(one); got != 0 {
		t.Errorf("%d blobs were stored on the way", got)
	}
	lose()
	r.Break(registrytest.Fault{Handler: registrytest.Status(http.StatusUnauthorized)})
	n.must(n.set.Repair(t.Context())) // it tells the log
	_, err = n.set.Chain(t.Context(), a.ID)
	n.want(errs.Anonymous, err, "the layers cannot be had")
}

// private lets only one user have blobs.
func private() registrytest.Fault {
	return registrytest.Fault{Match: registrytest.Blobs(), Handler: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if user, password, ok := r.BasicAuth(); ok && user == "me" && password == "secret" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		w.WriteHeader(http.StatusUnauthorized)
	}}
}

// Layers that only the user may read go from registry to registry with the
// user's logins, which are not kept.
func TestPushFromPrivateRegistry(t *testing.T) {
	one, _ := sample(t)
	n, from, to := newNode(t, offers, follows(image.Drop)), registrytest.New(t), registrytest.New(t)
	from.Push(t, "one", "v1", one)
	a := n.pull(from.Host() + "/one:v1")
	if got := fmt.Sprint(a.Sources); got != "["+from.Host()+"/one]" {
		t.Errorf("sources %s", got)
	}
	from.Break(private())
	name := to.Host() + "/mine:v1"
	n.must(n.set.Tag(t.Context(), a.ID, name))
	n.want(errs.Anonymous, n.set.Push(t.Context(), spec.PushRequest{Reference: name}, nil), "push without a login")
	logins := spec.Logins{from.Host(): {Username: "me", Password: "secret"}}
	n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: name, Logins: logins}, nil))
	if got := newNode(t).pull(name); got.Manifest != a.Manifest {
		t.Errorf("pulled back %s, pushed %s", got.Manifest, a.Manifest)
	}

	// A scrub repairs with them too.
	keys := n.keysOf(a)
	n.offering().keeps(keys[0], 3)
	n.offering().breaks(keys[0], 1)
	to.Break(private())
	if result, _ := n.scrub(spec.ScrubRequest{}); result.Repaired != 0 {
		t.Errorf("without a login %+v", result)
	}
	if result, _ := n.scrub(spec.ScrubRequest{Logins: logins}); result.Repaired != 1 {
		t.Errorf("with a login %+v", result)
	}
}
