package transfer_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	coretransfer "github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registrytest"
	"berth/node/snapshot"
)

var here = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// madeImage has three layers, of each kind.
func madeImage(t *testing.T, opts ...registrytest.Option) registrytest.Image {
	t.Helper()
	return registrytest.Make(t, []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("a", "1"), registrytest.Text("b", "2"))),
		registrytest.Zstd(t, registrytest.Tar(t, registrytest.Text("a", "3"))),
		registrytest.Plain(t, registrytest.Tar(t, registrytest.Text("c", string(registrytest.Noise(1, 200_000))))),
	}, opts...)
}

func (w *world) registry(reference string, opts ...registry.Opt) *registry.OCIRegistry {
	w.Helper()
	r, err := registry.NewOCIRegistry(w.Context(), reference, append([]registry.Opt{registry.WithDefaultScheme("http")}, opts...)...)
	w.must(err)
	return r
}

// pulled is where ctr's pull puts an image.
func pulled(reference string, opts ...image.StoreOpt) *image.Store {
	return image.NewStore(reference, append([]image.StoreOpt{image.WithPlatforms(here), image.WithUnpack(here, ""), image.WithAllMetadata}, opts...)...)
}

// whole checks an image as `ctr images check` does.
func (w *world) whole(namespace, reference string, matcher platforms.MatchComparer) images.Image {
	w.Helper()
	ctx := w.in(namespace)
	found, err := w.stores.Images.Get(ctx, reference)
	w.must(err)
	ok, _, _, missing, err := images.Check(ctx, w.stores.Content, found.Target, matcher)
	if err != nil || !ok || len(missing) > 0 {
		w.Errorf("%s in %s lacks %v, %v", reference, namespace, missing, err)
	}
	return found
}

// events remembers progress.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) take(p coretransfer.Progress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	kind, _, _ := strings.Cut(p.Name, "-")
	e.all = append(e.all, kind+" "+p.Event)
}

func (e *events) has(event string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.all, event)
}

// Three namespaces pull one image at once: each layer comes and is unpacked
// once, and each namespace has all of the image, which outlives a collection.
func TestPull(t *testing.T) {
	w, r := newWorld(t), registrytest.New(t)
	made := madeImage(t)
	r.PushIndex(t, "app", "1", made, madeImage(t, registrytest.Platform("linux", "s390x", "")))
	reference := r.Host() + "/app:1"
	var all sync.WaitGroup
	var seen events
	for _, namespace := range []string{"one", "two", "default"} {
		all.Go(func() {
			if err := w.client().Transfer(w.in(namespace), w.registry(reference), pulled(reference, image.WithImageLabels(map[string]string{"mine": "1"})), coretransfer.WithProgress(seen.take)); err != nil {
				t.Errorf("%s: %v", namespace, err)
			}
		})
	}
	all.Wait()
	if n := w.store.ingests.Load(); n != 3 {
		t.Errorf("3 layers were unpacked %d times", n)
	}
	for _, l := range made.Layers {
		if n := len(r.Requests(http.MethodGet, l.Digest.String())); n != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
	w.must(w.leases.Collect(t.Context()))
	for _, namespace := range []string{"one", "two", "default"} {
		w.noLeases(namespace)
		found := w.whole(namespace, reference, platforms.Only(here))
		if found.Labels["mine"] != "1" {
			t.Errorf("labels of the image: %v", found.Labels)
		}
		w.labelled(namespace, reference, made)
	}
	if !seen.has("layer extracted") || !seen.has("config complete") && !seen.has("config already exists") {
		t.Errorf("progress was %q", seen.all)
	}
	if list, err := w.images.List(t.Context(), nil); err != nil || len(list) != 1 {
		t.Errorf("the node's own images: %v, %v", list, err)
	}
}

// labelled checks what other clients of the namespace rely on.
func (w *world) labelled(namespace, reference string, made registrytest.Image) {
	w.Helper()
	ctx := w.in(namespace)
	host, _, _ := strings.Cut(reference, ":")
	for _, l := range made.Layers {
		info, err := w.stores.Content.Info(ctx, l.Digest)
		if err != nil || info.Labels["containerd.io/uncompressed"] != l.DiffID.String() || info.Labels["containerd.io/distribution.source."+host] != "app" {
			w.Errorf("%s: layer %s has labels %v, %v", namespace, l.Digest, info.Labels, err)
		}
	}
	config, err := images.Config(ctx, w.stores.Content, w.imageOf(ctx, reference).Target, platforms.Only(here))
	w.must(err)
	info, err := w.stores.Content.Info(ctx, config.Digest)
	w.must(err)
	top := info.Labels["containerd.io/gc.ref.snapshot.overlayfs"]
	if _, err := w.names.Layer(ctx, namespace, "overlayfs", top); err != nil {
		w.Errorf("%s: top layer %q: %v", namespace, top, err)
	}
}

func (w *world) imageOf(ctx context.Context, reference string) images.Image {
	w.Helper()
	found, err := w.stores.Images.Get(ctx, reference)
	w.must(err)
	return found
}

// All platforms come where none is named, and only this one is unpacked.
func TestAllPlatforms(t *testing.T) {
	w, r := newWorld(t), registrytest.New(t)
	other := registrytest.Make(t, []registrytest.Layer{registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("x", "y")))}, registrytest.Platform("linux", "s390x", ""))
	r.PushIndex(t, "app", "1", madeImage(t), other)
	reference := r.Host() + "/app:1"
	w.must(w.client().Transfer(w.in("one"), w.registry(reference), image.NewStore(reference, image.WithUnpack(here, "overlayfs"))))
	w.whole("one", reference, platforms.All)
	if n := w.store.ingests.Load(); n != 3 {
		t.Errorf("%d layers were unpacked", n)
	}
}

// login answers as a client that knows a password.
type login struct {
	asked  []string
	secret string
}

func (l *login) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	l.asked = append(l.asked, host)
	return registry.Credentials{Host: host, Username: "me", Secret: l.secret}, nil
}

// The client is asked for its login over a stream of its own; without the right
// one nothing is left.
func TestLogin(t *testing.T) {
	w, r := newWorld(t), registrytest.New(t)
	r.Push(t, "app", "1", madeImage(t))
	r.Break(registrytest.Fault{
		Match:   func(q *http.Request) bool { _, secret, _ := q.BasicAuth(); return secret != "right" },
		Handler: registrytest.Status(http.StatusUnauthorized, "WWW-Authenticate", `Basic realm="test"`),
	})
	reference := r.Host() + "/app:1"
	for _, secret := range []string{"wrong", "right"} {
		l := &login{secret: secret}
		err := w.client().Transfer(w.in("one"), w.registry(reference, registry.WithCredentials(l)), pulled(reference))
		if (err == nil) != (secret == "right") || len(l.asked) == 0 {
			t.Errorf("with the %s login, asked for %q: %v", secret, l.asked, err)
		}
		w.noLeases("one")
	}
	w.whole("one", reference, platforms.Only(here))
}

// What a registry does not have, or gives wrongly, is an error, and nothing is
// left.
func TestBadPull(t *testing.T) {
	for name, c := range map[string]struct {
		reference string
		fault     func(registrytest.Image) registrytest.Fault
		is        func(error) bool
	}{
		"no such image": {reference: "none:1", is: errdefs.IsNotFound},
		"a damaged layer": {reference: "app:1", is: func(err error) bool { return err != nil }, fault: func(i registrytest.Image) registrytest.Fault {
			return registrytest.Fault{Match: registrytest.Blobs(i.Layers[2].Digest), Handler: registrytest.Flip()}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w, r := newWorld(t), registrytest.New(t)
			made := madeImage(t)
			r.Push(t, "app", "1", made)
			if c.fault != nil {
				r.Break(c.fault(made))
			}
			reference := r.Host() + "/" + c.reference
			if err := w.client().Transfer(w.in("one"), w.registry(reference), pulled(reference)); !c.is(err) {
				t.Fatal(err)
			}
			w.nothingLeft("one")
		})
	}
}

// nothingLeft checks that a transfer that failed left nothing behind.
func (w *world) nothingLeft(namespace string) {
	w.Helper()
	w.noLeases(namespace)
	w.must(w.leases.Collect(w.Context()))
	if list, err := w.contents.List(w.Context(), namespace); err != nil || len(list) > 0 {
		w.Errorf("content is left: %v, %v", list, err)
	}
	if left := w.contents.Statuses(w.Context(), namespace); len(left) > 0 {
		w.Errorf("ingests are left: %v", left)
	}
	all, err := w.stores.Images.List(w.in(namespace))
	if err != nil || len(all) > 0 {
		w.Errorf("images are left: %v, %v", all, err)
	}
	if names, err := w.names.Layer(w.Context(), namespace, "overlayfs", "none"); !errdefs.IsNotFound(err) && err == nil {
		w.Errorf("a snapshot is left: %v", names)
	}
}

// A client that goes in the middle of a pull leaves nothing.
func TestClientGoes(t *testing.T) {
	w, r := newWorld(t), registrytest.New(t)
	made := madeImage(t)
	r.Push(t, "app", "1", made)
	r.Break(registrytest.Fault{Match: registrytest.Blobs(made.Layers[2].Digest), Handler: registrytest.Stall(1000)})
	reference := r.Host() + "/app:1"
	ctx, leave := context.WithCancel(w.in("one"))
	defer leave()
	var seen events
	err := w.client().Transfer(ctx, w.registry(reference), pulled(reference), coretransfer.WithProgress(func(p coretransfer.Progress) {
		seen.take(p)
		if strings.HasPrefix(p.Name, "layer-") {
			leave()
		}
	}))
	if err == nil {
		t.Fatal("pulled what does not come")
	}
	r.Mend()
	// The service ends a moment after its client.
	for tries := 0; ; tries++ {
		all, err := w.stores.Leases.List(w.in("one"))
		w.must(err)
		if len(all) == 0 {
			break
		}
		if tries == 500 || !snapshot.Rest(t.Context(), 10*time.Millisecond) {
			t.Fatal("the lease stays")
		}
	}
	w.nothingLeft("one")
}

// An image goes to a registry, and comes back the same.
func TestPush(t *testing.T) {
	w, r := newWorld(t), registrytest.New(t)
	made := madeImage(t)
	r.Push(t, "app", "1", made)
	reference, copied := r.Host()+"/app:1", r.Host()+"/copy:2"
	w.must(w.client().Transfer(w.in("one"), w.registry(reference), pulled(reference)))
	w.must(w.client().Transfer(w.in("one"), image.NewStore(reference), image.NewStore(copied))) // tag
	var seen events
	w.must(w.client().Transfer(w.in("one"), image.NewStore(copied, image.WithPlatforms(here)), w.registry(copied), coretransfer.WithProgress(seen.take)))
	w.must(w.client().Transfer(w.in("two"), w.registry(copied), pulled(copied)))
	if a, b := w.imageOf(w.in("one"), reference), w.imageOf(w.in("two"), copied); a.Target.Digest != b.Target.Digest {
		t.Errorf("%s came back as %s", a.Target.Digest, b.Target.Digest)
	}
	w.noLeases("one")
	if err := w.client().Transfer(w.in("one"), image.NewStore("none"), w.registry(copied)); !errdefs.IsNotFound(err) {
		t.Errorf("pushed none: %v", err)
	}
}

// An image goes into an archive, and comes back by its name into another
// namespace, and into another node.
func TestArchive(t *testing.T) {
	w, r := newWorld(t), registrytest.New(t)
	r.Push(t, "app", "1", madeImage(t))
	reference := r.Host() + "/app:1"
	w.must(w.client().Transfer(w.in("one"), w.registry(reference), pulled(reference)))
	path := filepath.Join(t.TempDir(), "archive")
	f, err := os.Create(path)
	w.must(err)
	out := &closing{File: f, done: make(chan struct{})}
	w.must(w.client().Transfer(w.in("one"), image.NewStore(reference), archive.NewImageExportStream(out, "")))
	<-out.done
	w.noLeases("one")
	other := newWorld(t)
	for _, to := range []*world{w, other} {
		f, err := os.Open(path)
		w.must(err)
		var seen events
		w.must(to.client().Transfer(to.in("two"), archive.NewImageImportStream(f, ""),
			image.NewStore("", image.WithPlatforms(here), image.WithUnpack(here, ""), image.WithNamedPrefix("x", true), image.WithDigestRef("import", true, true)),
			coretransfer.WithProgress(seen.take)))
		to.whole("two", reference, platforms.Only(here))
		to.noLeases("two")
		w.must(f.Close())
	}
	if n := w.store.ingests.Load(); n != 3 {
		t.Errorf("layers that are here were unpacked again: %d in all", n)
	}
	if n := other.store.ingests.Load(); n != 3 {
		t.Errorf("another node unpacked %d layers", n)
	}
}

// Docker's archives are taken, and what is none is refused.
func TestForeignArchives(t *testing.T) {
	w := newWorld(t)
	into := image.NewStore("", image.WithPlatforms(here), image.WithUnpack(here, ""), image.WithNamedPrefix("x", true))
	layer := registrytest.Tar(t, registrytest.Text("a", "1"))
	config := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + registrytest.Plain(t, layer).DiffID.String() + `"]}}`
	docker := registrytest.Tar(t, registrytest.Text("l.tar", string(layer)), registrytest.Text("c.json", config),
		registrytest.Text("manifest.json", `[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar"]}]`))
	w.must(w.client().Transfer(w.in("one"), archive.NewImageImportStream(strings.NewReader(string(docker)), ""), into))
	w.whole("one", "docker.io/library/app:1", platforms.Only(here))
	for name, text := range map[string]string{"nothing": "", "no tar": "hello", "half": string(docker[:len(docker)/2])} {
		if err := w.client().Transfer(w.in("two"), archive.NewImageImportStream(strings.NewReader(text), ""), into); err == nil {
			t.Errorf("%s was imported", name)
		}
	}
	w.nothingLeft("two")
}

// What cannot be transferred is Unimplemented.
func TestUnknownPairs(t *testing.T) {
	w := newWorld(t)
	out := archive.NewImageExportStream(discard{}, "")
	if err := w.client().Transfer(w.in("one"), w.registry("localhost/a:1"), out); !errdefs.IsNotImplemented(err) {
		t.Errorf("from a registry into an archive: %v", err)
	}
	if err := w.client().Transfer(t.Context(), image.NewStore("a"), image.NewStore("b")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a namespace: %v", err)
	}
}

type discard struct{ io.Writer }

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }
