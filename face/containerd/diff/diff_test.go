package diff_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/content"
	corediff "github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	coresnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"berth/image/blob"
	"berth/node/snapshot"
)

type applier interface {
	corediff.Applier
	corediff.Comparer
}

func (w *world) applier() applier {
	return proxy.NewDiffApplier(w.diffs()).(applier)
}

// unpackImage does as clients of containerd do.
func (w *world) unpackImage(ctx context.Context, snapshotter string, manifest ocispec.Descriptor, parallel bool) error {
	platform := unpack.Platform{Platform: platforms.All, SnapshotterKey: snapshotter, Snapshotter: w.snapshotter(snapshotter), Applier: w.applier()}
	var opts []unpack.UnpackerOpt
	if parallel {
		platform.SnapshotterCapabilities = []string{"rebase"}
		opts = append(opts, unpack.WithUnpackLimiter(semaphore.NewWeighted(4)))
	}
	u, err := unpack.NewUnpacker(ctx, w.content, append(opts, unpack.WithUnpackPlatform(platform))...)
	if err != nil {
		return err
	}
	err = images.Dispatch(ctx, u.Unpack(images.ChildrenHandler(w.content)), nil, manifest)
	_, unpackErr := u.Wait()
	return errors.Join(err, unpackErr)
}

// Clients of three namespaces that unpack one image at once unpack each layer
// once, whether they do so layer by layer or side by side.
func TestUnpackedOnce(t *testing.T) {
	for name, parallel := range map[string]bool{"in turn": false, "side by side": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.store.slow = func() { snapshot.Rest(t.Context(), 20*time.Millisecond) }
			manifest, diffs := w.putImage(map[string]string{"a": "1"}, map[string]string{"b": "2"}, map[string]string{"a": "3", "c": "4"})
			var all sync.WaitGroup
			for _, namespace := range []string{"one", "two", "three"} {
				for _, snapshotter := range []string{"overlayfs", "native"} {
					all.Go(func() {
						if err := w.unpackImage(w.in(namespace), snapshotter, manifest, parallel); err != nil {
							t.Errorf("%s: %v", namespace, err)
						}
					})
				}
			}
			all.Wait()
			if n := w.store.ingests.Load(); n != 3 {
				t.Errorf("3 layers were unpacked %d times", n)
			}
			top := identity.ChainID(diffs).String()
			for _, namespace := range []string{"one", "three", "four"} { // the last has not asked before
				w.shows(namespace, top, map[string]string{"a": "3", "b": "2", "c": "4"})
			}
			if _, err := w.images.Collect(w.Context()); err != nil {
				t.Error(err)
			}
			w.shows("two", top, map[string]string{"a": "3"})
			if _, err := w.snapshotter("overlayfs").Stat(w.in("two"), "sha256:0000000000000000000000000000000000000000000000000000000000000000"); !errdefs.IsNotFound(err) {
				t.Errorf("stat of a layer that nobody has: %v", err)
			}
		})
	}
}

// shows looks at the tree of a layer, as a container would.
func (w *world) shows(namespace, layer string, files map[string]string) {
	w.Helper()
	s := w.snapshotter("overlayfs")
	mounts, err := s.Prepare(w.in(namespace), "look", layer)
	w.must(err)
	for name, body := range files {
		got, err := os.ReadFile(filepath.Join(mounts[0].Source, name))
		if err != nil || string(got) != body {
			w.Errorf("%s: file %s: %q, %v", namespace, name, got, err)
		}
	}
	w.must(s.Remove(w.in(namespace), "look"))
}

// Layers go when the last name and the last image that need them have gone.
func TestLayersGo(t *testing.T) {
	w := newWorld(t)
	manifest, diffs := w.putImage(map[string]string{"a": "1"}, map[string]string{"b": "2"})
	for _, namespace := range []string{"one", "two"} {
		w.must(w.unpackImage(w.in(namespace), "overlayfs", manifest, false))
	}
	chain := identity.ChainIDs(slices.Clone(diffs))
	s := w.snapshotter("overlayfs")
	for i, namespace := range []string{"one", "two"} {
		for _, id := range slices.Backward(chain) {
			w.must(s.Remove(w.in(namespace), id.String()))
		}
		if _, err := w.images.Collect(w.Context()); err != nil {
			t.Fatal(err)
		}
		info, err := s.Stat(w.in("three"), chain[1].String())
		if i == 0 {
			if err != nil || info.Parent != chain[0].String() {
				t.Errorf("a layer that is needed: %v, %v", info, err)
			}
			w.must(s.Remove(w.in("three"), chain[1].String()))
			w.must(s.Remove(w.in("three"), chain[0].String()))
		} else if !errdefs.IsNotFound(err) {
			t.Errorf("a layer that nobody needs: %v", err)
		}
	}
}

// A client that begins to unpack a layer and gives up lets the next one do it;
// one that asks for the layer meanwhile waits.
func TestGivenUp(t *testing.T) {
	w := newWorld(t)
	_, diffs := w.putImage(map[string]string{"a": "1"})
	ref := coresnapshots.WithLabels(map[string]string{coresnapshots.LabelSnapshotRef: diffs[0].String()})
	s := w.snapshotter("overlayfs")
	_, err := s.Prepare(w.in("one"), "extract-1 "+diffs[0].String(), "", ref)
	w.must(err)
	short, cancel := context.WithTimeout(w.in("two"), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Prepare(short, "extract-2 "+diffs[0].String(), "", ref); err == nil {
		t.Fatal("two unpack one layer")
	}
	done := make(chan error, 1)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() {
		_, err := s.Prepare(w.in("two"), "extract-3 "+diffs[0].String(), "", ref)
		done <- err
	})
	w.must(s.Remove(w.in("one"), "extract-1 "+diffs[0].String()))
	w.must(<-done)
}

// What was applied can be looked at before it is committed, and more be added.
func TestLookAtApplied(t *testing.T) {
	w := newWorld(t)
	ctx := w.in("one")
	s, a := w.snapshotter("overlayfs"), w.applier()
	plain := w.layerTar(map[string]string{"a": "1"})
	desc := w.put(ocispec.MediaTypeImageLayer, plain)
	mounts, err := s.Prepare(ctx, "work", "")
	w.must(err)
	applied, err := a.Apply(ctx, desc, mounts)
	if err != nil || applied.Digest != digest.FromBytes(plain) || applied.Size != int64(len(plain)) {
		t.Fatalf("%v, %v", applied, err)
	}
	mounts, err = s.Mounts(ctx, "work")
	w.must(err)
	body, err := os.ReadFile(filepath.Join(mounts[0].Source, "a"))
	if err != nil || string(body) != "1" {
		t.Fatalf("%q, %v", body, err)
	}
	w.must(os.WriteFile(filepath.Join(mounts[0].Source, "b"), []byte("2"), 0o600))
	w.must(s.Commit(ctx, "layer", "work"))
	w.shows("one", "layer", map[string]string{"a": "1", "b": "2"})
	if _, err := s.Stat(w.in("two"), "layer"); !errdefs.IsNotFound(err) {
		t.Errorf("a name of one namespace in another: %v", err)
	}
}

// What was applied is gone with the process, and its snapshot with it: nobody
// commits an empty layer instead.
func TestAppliedAndRestarted(t *testing.T) {
	w := newWorld(t)
	ctx := w.in("one")
	mounts, err := w.snapshotter("overlayfs").Prepare(ctx, "work", "")
	w.must(err)
	_, err = w.applier().Apply(ctx, w.put(ocispec.MediaTypeImageLayer, w.layerTar(map[string]string{"a": "1"})), mounts)
	w.must(err)
	w.end()
	w.open()
	if err := w.snapshotter("overlayfs").Commit(ctx, "layer", "work"); !errdefs.IsNotFound(err) {
		t.Errorf("committed: %v", err)
	}
}

// A name that is a chain ID does not make a layer everybody's: what was
// unpacked into it does.
func TestFalseChainID(t *testing.T) {
	w := newWorld(t)
	_, diffs := w.putImage(map[string]string{"a": "1"})
	s := w.snapshotter("overlayfs")
	mounts, err := s.Prepare(w.in("one"), "work", "")
	w.must(err)
	_, err = w.applier().Apply(w.in("one"), w.put(ocispec.MediaTypeImageLayer, w.layerTar(map[string]string{"a": "evil"})), mounts)
	w.must(err)
	w.must(s.Commit(w.in("one"), diffs[0].String(), "work"))
	w.shows("one", diffs[0].String(), map[string]string{"a": "evil"})
	if _, err := s.Stat(w.in("two"), diffs[0].String()); !errdefs.IsNotFound(err) {
		t.Errorf("a false layer is known in another namespace: %v", err)
	}
}

// Types that need a processor are refused by name, and damaged layers too.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	ctx := w.in("one")
	mounts, err := w.snapshotter("overlayfs").Prepare(ctx, "work", "")
	w.must(err)
	plain := w.layerTar(map[string]string{"a": "1"})
	for mediaType, is := range map[string]func(error) bool{
		ocispec.MediaTypeImageLayerGzip + "+encrypted": errdefs.IsNotImplemented,
		"text/plain":                        errdefs.IsNotImplemented,
		ocispec.MediaTypeImageLayer:         func(err error) bool { return err == nil },
		"application/vnd.oci.image.layer.x": errdefs.IsNotImplemented,
	} {
		if _, err := w.applier().Apply(ctx, w.put(mediaType, plain), mounts); !is(err) {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
	mounts, err = w.snapshotter("overlayfs").Prepare(ctx, "damaged", "")
	w.must(err)
	if _, err := w.applier().Apply(ctx, w.put(ocispec.MediaTypeImageLayerGzip, w.zipped(plain)[:30]), mounts); !errdefs.IsInvalidArgument(err) {
		t.Errorf("half a layer: %v", err)
	}
	if _, err := w.applier().Apply(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("none"), Size: 1}, mounts); !errdefs.IsNotFound(err) {
		t.Errorf("a layer that is not here: %v", err)
	}
	if _, err := w.diffs().Apply(t.Context(), &diffapi.ApplyRequest{}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("without a namespace: %v", err)
	}
}

// A diff of our snapshots is the layer's change alone, in each format, the same
// each time.
func TestDiff(t *testing.T) {
	w := newWorld(t)
	ctx := w.in("one")
	s, a := w.snapshotter("overlayfs"), w.applier()
	manifest, diffs := w.putImage(map[string]string{"a": "1"})
	w.must(w.unpackImage(ctx, "overlayfs", manifest, false))
	upper, err := s.Prepare(ctx, "work", diffs[0].String())
	w.must(err)
	w.must(os.WriteFile(filepath.Join(upper[0].Source, "b"), []byte("2"), 0o600))
	lower, err := s.View(ctx, "below", diffs[0].String())
	w.must(err)
	epoch := time.Unix(1000, 0)
	var plain digest.Digest
	for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ""} {
		desc, err := a.Compare(ctx, lower, upper, corediff.WithMediaType(mediaType), corediff.WithReference("ref "+mediaType),
			corediff.WithLabels(map[string]string{"mine": "1"}), corediff.WithSourceDateEpoch(&epoch))
		w.must(err)
		info, err := w.content.Info(ctx, desc.Digest)
		w.must(err)
		if plain == "" {
			plain = desc.Digest
		}
		if info.Labels["mine"] != "1" || info.Labels["containerd.io/uncompressed"] != plain.String() {
			t.Errorf("%s has labels %v; the plain one is %s", mediaType, info.Labels, plain)
		}
		w.readDiff(ctx, desc, epoch)
	}
	if _, err := a.Compare(ctx, lower, upper, corediff.WithMediaType("text/plain")); !errdefs.IsNotImplemented(err) {
		t.Errorf("a diff as text: %v", err)
	}
}

func (w *world) readDiff(ctx context.Context, desc ocispec.Descriptor, latest time.Time) {
	w.Helper()
	body, err := content.ReadBlob(ctx, w.content, desc)
	w.must(err)
	r, _, err := blob.Uncompress(bytes.NewReader(body), 1<<20)
	w.must(err)
	in := tar.NewReader(r)
	var names []string
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		w.must(err)
		if h.ModTime.After(latest) {
			w.Errorf("%s: %s is of %s", desc.MediaType, h.Name, h.ModTime)
		}
		names = append(names, filepath.Clean(h.Name))
	}
	if !slices.Contains(names, "b") || slices.Contains(names, "a") {
		w.Errorf("%s has %q", desc.MediaType, names)
	}
}

// Trees that are no snapshots of ours are written and compared as they are
// mounted.
func TestForeignMounts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	w := newWorld(t)
	ctx := w.in("one")
	dirs := make([]string, 2)
	for i := range dirs {
		dirs[i] = t.TempDir()
	}
	bind := func(dir string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}}
	}
	plain := w.layerTar(map[string]string{"b": "1"})
	applied, err := w.applier().Apply(ctx, w.put(ocispec.MediaTypeImageLayerGzip, w.zipped(plain)), bind(dirs[1]))
	if err != nil || applied.Digest != digest.FromBytes(plain) {
		t.Fatalf("%v, %v", applied, err)
	}
	desc, err := w.applier().Compare(ctx, bind(dirs[0]), bind(dirs[1]))
	w.must(err)
	w.readDiff(ctx, desc, time.Now())
}

// The collector takes what nothing refers to, but not a view that a client just
// looks at; what a lease holds goes with the lease.
func TestCollected(t *testing.T) {
	w := newWorld(t)
	ctx := w.in("one")
	s := w.snapshotter("overlayfs")
	_, err := w.leases.Create(t.Context(), "one", "l", nil)
	w.must(err)
	leased := leases.WithLease(ctx, "l")
	_, err = s.Prepare(leased, "work", "")
	w.must(err)
	w.must(s.Commit(leased, "layer", "work"))
	_, err = s.View(leased, "leased view", "layer")
	w.must(err)
	_, err = s.Prepare(leased, "active", "layer")
	w.must(err)
	_, err = s.View(ctx, "view", "")
	w.must(err)
	_, err = s.Prepare(ctx, "nobody's", "")
	w.must(err)
	_, err = s.Prepare(ctx, "root", "layer", coresnapshots.WithLabels(map[string]string{"containerd.io/gc.root": "now"}))
	w.must(err)
	names := func() (all []string) {
		w.must(s.Walk(ctx, func(_ context.Context, info coresnapshots.Info) error {
			all = append(all, info.Name)
			return nil
		}))
		return all
	}
	w.must(w.leases.Collect(t.Context()))
	if got, want := names(), []string{"active", "layer", "leased view", "root", "view"}; !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	w.must(w.leases.Delete(t.Context(), "one", "l"))
	w.must(w.leases.Collect(t.Context()))
	if got, want := names(), []string{"layer", "root", "view"}; !slices.Equal(got, want) {
		t.Errorf("behind the lease there are %q, want %q", got, want)
	}
	if _, err := s.Prepare(leases.WithLease(ctx, "none"), "new", ""); !errdefs.IsNotFound(err) {
		t.Errorf("under a lease that there is not: %v", err)
	}
}

// Who is told that a layer is here has it held by his lease.
func TestKnownIsHeld(t *testing.T) {
	w := newWorld(t)
	manifest, diffs := w.putImage(map[string]string{"a": "1"})
	s, ctx := w.snapshotter("overlayfs"), w.in("one")
	for _, id := range []string{"first", "second"} {
		_, err := w.leases.Create(t.Context(), "one", id, nil)
		w.must(err)
	}
	w.must(w.unpackImage(leases.WithLease(ctx, "first"), "overlayfs", manifest, false))
	ref := coresnapshots.WithLabels(map[string]string{coresnapshots.LabelSnapshotRef: diffs[0].String()})
	if _, err := s.Prepare(leases.WithLease(ctx, "second"), "extract", "", ref); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	w.must(w.leases.Delete(t.Context(), "one", "first"))
	w.must(w.leases.Collect(t.Context()))
	err := s.Walk(ctx, func(context.Context, coresnapshots.Info) error { return errors.New("found") })
	if err == nil {
		t.Error("the layer went with the lease of who brought it")
	}
}
