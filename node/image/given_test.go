package image_test

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/catalog"
	"berth/image/registrytest"
	"berth/node/content"
	"berth/node/image"
	"berth/node/snapshot"
	"berth/spec"
)

// give brings an image as a client does, but for those of its blobs.
func (n *node) give(name string, i registrytest.Image, without ...digest.Digest) catalog.Record {
	n.Helper()
	for d, body := range i.Blobs {
		if !slices.Contains(without, d) {
			_, err := n.blobs.Put(n.Context(), body)
			n.must(err)
		}
	}
	rec, err := n.set.CreateName(n.Context(), spec.DefaultNamespace, "", catalog.Record{Name: name, Target: i.Manifest})
	n.must(err)
	return rec
}

// An image that a client gave is an image like any other: started, named,
// committed on, pushed, saved, removed.
func TestGiven(t *testing.T) {
	one, _ := sample(t)
	n, r := newNode(t), registrytest.New(t)
	name := r.Host() + "/given:1"
	if rec := n.give(name, one); rec.Image != one.ConfigAt.Digest.String() {
		t.Fatal(rec)
	}
	n.restart()
	if n.layers() != 0 {
		t.Error("unpacked before it is needed")
	}
	n.must(n.set.Repair(t.Context()))
	if n.layers() != 0 {
		t.Error("unpacked though nobody asked")
	}
	got, err := n.set.Get(t.Context(), name)
	n.must(err)
	if len(n.files(got)) == 0 || n.layers() != len(one.Layers) {
		t.Error("not unpacked")
	}
	n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: name, Insecure: true}, nil))
	n.must(n.set.Tag(t.Context(), name, "other:1"))
	made := n.change(got, spec.CommitRequest{Reference: "made:1"})
	removed, err := n.set.Remove(t.Context(), name, false)
	n.must(err)
	if len(removed) != 1 {
		t.Error(removed)
	}
	_, err = n.set.Remove(t.Context(), "other:1", false)
	n.must(err)
	if _, err := n.set.Get(t.Context(), got.ID); errs.KindOf(err) != errs.NotFound {
		t.Error(err)
	}
	if len(n.files(made)) == 0 {
		t.Error("what was made of it is not whole")
	}
	// What is pulled is no longer a client's, and stays without a name.
	n.give("again:1", one)
	n.pull(name)
	for _, gone := range []string{name, "again:1"} {
		n.must(n.set.DeleteName(t.Context(), spec.DefaultNamespace, gone, ""))
	}
	_, err = n.set.Remove(t.Context(), "made:1", false)
	n.must(err)
	n.settle()
}

// An image whose layers somebody has unpacked needs their blobs no more; one
// whose layers nobody has keeps them.
func TestGivenLayers(t *testing.T) {
	one, _ := sample(t)
	n := newNode(t)
	n.give("docker.io/library/a:1", one)
	_, err := n.set.Collect(t.Context())
	n.must(err)
	if got := n.layerBlobs(one); got != len(one.Layers) {
		t.Errorf("%d blobs of layers that are not unpacked, want %d", got, len(one.Layers))
	}
	got, err := n.set.Get(t.Context(), "a:1")
	n.must(err)
	want := n.files(got)
	_, err = n.set.Collect(t.Context())
	n.must(err)
	if n.layerBlobs(one) != 0 || !n.blobs.Has(one.Manifest.Digest) || !n.blobs.Has(one.ConfigAt.Digest) {
		t.Error(n.layerBlobs(one), "blobs of layers that nobody holds; or documents lost")
	}
	n.restart()
	if again := n.files(got); len(again) != len(want) {
		t.Error(again)
	}
	n.must(n.set.DeleteName(t.Context(), spec.DefaultNamespace, "docker.io/library/a:1", one.Manifest.Digest))
	n.settle()
}

// Parts that come later, in whatever order, and parts that never come.
func TestGivenLater(t *testing.T) {
	one, _ := sample(t)
	for _, missing := range []digest.Digest{one.Manifest.Digest, one.ConfigAt.Digest} {
		for _, restarted := range []bool{false, true} {
			n := newNode(t)
			if rec := n.give("docker.io/library/a:1", one, missing); rec.Image != "" {
				t.Error(rec)
			}
			if all, err := n.set.List(t.Context(), nil); err != nil || len(all) != 0 {
				t.Error(all, err)
			}
			if restarted {
				n.restart()
			}
			_, err := n.blobs.Put(t.Context(), one.Blobs[missing])
			n.must(err)
			n.set.Arrived(t.Context(), digest.FromString("another"))
			n.set.Arrived(t.Context(), missing)
			if _, err := n.set.Get(t.Context(), "a:1"); err != nil {
				t.Error(err)
			}
		}
	}
	// It may also have come while the node was away.
	n := newNode(t)
	n.give("docker.io/library/a:1", one, one.ConfigAt.Digest)
	_, err := n.blobs.Put(t.Context(), one.Blobs[one.ConfigAt.Digest])
	n.must(err)
	n.restart()
	if _, err := n.set.Get(t.Context(), "a:1"); err != nil {
		t.Error(err)
	}
}

// A name can be anything, and a target something that is no image.
func TestOddNames(t *testing.T) {
	one, _ := sample(t)
	n := newNode(t)
	for _, mediaType := range []string{"", "text/plain", ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest} {
		body := []byte(`{"manifests": 1, "layers": "x", "config": {}, "schemaVersion": 2} ` + mediaType)
		d, err := n.blobs.Put(t.Context(), body)
		n.must(err)
		_, err = n.set.CreateName(t.Context(), spec.DefaultNamespace, "", catalog.Record{Name: "odd " + mediaType, Target: ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}})
		if want := errs.Kind(""); mediaType != "" && errs.KindOf(err) != want || mediaType == "" && errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", mediaType, err)
		}
	}
	n.give("no name at all!", one)
	n.restart()
	if got, err := n.set.Get(t.Context(), "no name at all!"); err != nil || len(got.Names) != 0 {
		t.Error(got, err)
	}
	if removed, err := n.set.Remove(t.Context(), "no name at all!", false); err != nil || len(removed) != 1 || removed[0].Deleted == "" {
		t.Error(removed, err)
	}
	if names := n.set.Names(spec.DefaultNamespace); len(names) != 4 {
		t.Error(names)
	}
}

// What a client's container knows by a name is in use; only the client itself
// may take the name away. An image whose name is odd is not one without.
func TestGivenPruned(t *testing.T) {
	one, _ := sample(t)
	n := newNode(t)
	n.give("No Name Here!", one)
	for _, all := range []bool{false, true} {
		n.give("docker.io/library/a:1", one)
		n.users["docker.io/library/a:1"] = []string{"c"}
		if pruned, err := n.set.Prune(t.Context(), all, nil); err != nil || len(pruned.Removed) != 0 {
			t.Error(pruned, err)
		}
		if _, err := n.set.Remove(t.Context(), one.ConfigAt.Digest.String(), false); errs.KindOf(err) != errs.Conflict {
			t.Error(err)
		}
		n.must(n.set.DeleteName(t.Context(), spec.DefaultNamespace, "docker.io/library/a:1", ""))
	}
	if pruned, err := n.set.Prune(t.Context(), false, nil); err != nil || len(pruned.Removed) != 0 {
		t.Error("an image with an odd name was pruned:", pruned, err)
	}
	if pruned, err := n.set.Prune(t.Context(), true, nil); err != nil || len(pruned.Removed) != 1 {
		t.Error(pruned, err)
	}
	n.settle()
}

// The blobs of the node's images, as clients see them, also where the policy
// let the layers go.
func TestParts(t *testing.T) {
	one, _ := sample(t)
	for _, policy := range []image.Policy{image.Keep, image.Drop} {
		n, r := newNode(t, offers, follows(policy)), registrytest.New(t)
		r.Push(t, "one", "v1", one)
		n.pull(r.Host() + "/one:v1")
		parts := map[digest.Digest]content.Info{}
		n.must(n.set.EachPart(t.Context(), spec.DefaultNamespace, func(i content.Info) { parts[i.Digest] = i }))
		if len(parts) != len(one.Blobs) {
			t.Errorf("%d parts, want %d", len(parts), len(one.Blobs))
		}
		for d, body := range one.Blobs {
			if parts[d].Size != int64(len(body)) || parts[d].Labels["containerd.io/distribution.source.127.0.0.1"] != "one" {
				t.Error(parts[d])
			}
			f, err := n.set.Bring(t.Context(), d)
			n.must(err)
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%s: %s is not what was pulled: %v", policy, d, err)
			}
			n.must(f.Close())
		}
		_, err := n.set.Collect(t.Context())
		n.must(err)
		if got := n.layerBlobs(one); policy == image.Drop && got != 0 {
			t.Error(got, "blobs stay that the policy wants gone")
		}
		_, err = n.set.Remove(t.Context(), r.Host()+"/one:v1", false)
		n.must(err)
		if _, err := n.set.Part(t.Context(), spec.DefaultNamespace, one.Manifest.Digest); errs.KindOf(err) != errs.NotFound {
			t.Error(err)
		}
		n.must(n.snapshots.Walk(t.Context(), func(i snapshot.Info) error { t.Error("left:", i.Key); return nil }))
	}
}
