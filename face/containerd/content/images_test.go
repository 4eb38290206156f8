package content_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	cdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"berth/image/blob"
	"berth/image/registrytest"
	"berth/node/snapshot"
	"berth/spec"
)

func target(d ocispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}

func anything(text string) *types.Descriptor {
	return target(ocispec.Descriptor{MediaType: "application/x", Digest: digest.FromString(text), Size: 1})
}

func (w *world) code(err error, want codes.Code) {
	w.t.Helper()
	if status.Code(err) != want {
		w.t.Errorf("error %v has code %v, want %v", err, status.Code(err), want)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestImages(t *testing.T) {
	w := newWorld(t)
	ctx := in("apart")
	create := func(ctx context.Context, i *imagesapi.Image) (*imagesapi.Image, error) {
		r, err := w.names.Create(ctx, &imagesapi.CreateImageRequest{Image: i})
		return r.GetImage(), err
	}
	made, err := create(ctx, &imagesapi.Image{Name: "a b/c:d@e", Target: anything("1"), Labels: map[string]string{"k": "v", "none": ""}})
	w.must(err)
	if made.CreatedAt.AsTime().IsZero() || !made.CreatedAt.AsTime().Equal(made.UpdatedAt.AsTime()) || len(made.Labels) != 1 {
		t.Error(made)
	}
	_, err = create(ctx, &imagesapi.Image{Name: "a b/c:d@e", Target: anything("2")})
	w.code(err, codes.AlreadyExists)
	for _, bad := range []*imagesapi.Image{
		nil,
		{Name: "x"},
		{Target: anything("1")},
		{Name: "x", Target: &types.Descriptor{MediaType: "a", Digest: "sha256:short", Size: 1}},
		{Name: "x", Target: &types.Descriptor{MediaType: "a", Digest: digest.FromString("").String()}},
		{Name: "x", Target: &types.Descriptor{Digest: digest.FromString("").String(), Size: 1}},
		{Name: strings.Repeat("x", 1<<20), Target: anything("1")},
		{Name: "x", Target: anything("1"), Labels: map[string]string{"k": strings.Repeat("v", 4096)}},
	} {
		_, err := create(ctx, bad)
		w.code(err, codes.InvalidArgument)
		_, err = create(in("default"), bad)
		w.code(err, codes.InvalidArgument)
	}
	_, err = create(t.Context(), &imagesapi.Image{Name: "x", Target: anything("1")})
	w.code(err, codes.FailedPrecondition) // no namespace
	_, err = create(in("not/one"), &imagesapi.Image{Name: "x", Target: anything("1")})
	w.code(err, codes.InvalidArgument)

	update := func(i *imagesapi.Image, fields ...string) (*imagesapi.Image, error) {
		r, err := w.names.Update(ctx, &imagesapi.UpdateImageRequest{Image: i, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields}})
		return r.GetImage(), err
	}
	got, err := update(&imagesapi.Image{Name: made.Name, Labels: map[string]string{"l": "m", "ignored": "x"}, Target: anything("9")}, "labels.l", "labels.k")
	w.must(err)
	if len(got.Labels) != 1 || got.Labels["l"] != "m" || got.Target.Digest != made.Target.Digest || !got.UpdatedAt.AsTime().After(made.UpdatedAt.AsTime()) || !got.CreatedAt.AsTime().Equal(made.CreatedAt.AsTime()) {
		t.Error(got)
	}
	got, err = update(&imagesapi.Image{Name: made.Name, Target: anything("9")}, "target")
	w.must(err)
	if got.Target.Digest != anything("9").Digest || got.Labels["l"] != "m" {
		t.Error(got)
	}
	got, err = update(&imagesapi.Image{Name: made.Name, Target: &types.Descriptor{Annotations: map[string]string{"a": "b", "c": "d"}}}, "annotations.a")
	w.must(err)
	if len(got.Target.Annotations) != 1 || got.Target.Digest != anything("9").Digest {
		t.Error(got)
	}
	got, err = update(&imagesapi.Image{Name: made.Name, Target: anything("8")})
	w.must(err)
	if len(got.Labels) != 0 || len(got.Target.Annotations) != 0 {
		t.Error(got)
	}
	_, err = update(&imagesapi.Image{Name: made.Name}, "name")
	w.code(err, codes.InvalidArgument)
	_, err = update(&imagesapi.Image{Name: made.Name}, "target")
	w.code(err, codes.InvalidArgument)
	_, err = update(&imagesapi.Image{Name: "never", Target: anything("1")})
	w.code(err, codes.NotFound)
	_, err = update(&imagesapi.Image{})
	w.code(err, codes.InvalidArgument)

	_, err = create(ctx, &imagesapi.Image{Name: "two", Target: anything("2"), Labels: map[string]string{"dotted.name": "x"}})
	w.must(err)
	for want, filters := range map[string][]string{
		"a b/c:d@e two": nil,
		"two":           {`labels."dotted.name"==x`},
		"a b/c:d@e":     {`name~=^a`},
		"two ":          {"target.digest==" + anything("2").Digest + `,target.mediatype==application/x`},
		" ":             {"name==none", "labels.x"},
	} {
		r, err := w.names.List(ctx, &imagesapi.ListImagesRequest{Filters: filters})
		w.must(err)
		var names []string
		for _, i := range r.Images {
			names = append(names, i.Name)
		}
		if got := strings.Join(names, " "); got != strings.TrimSpace(want) {
			t.Errorf("%q fit %q", got, filters)
		}
	}
	_, err = w.names.List(ctx, &imagesapi.ListImagesRequest{Filters: []string{"name=="}})
	w.code(err, codes.InvalidArgument)

	w.restart()
	r, err := w.names.Get(ctx, &imagesapi.GetImageRequest{Name: made.Name})
	w.must(err)
	if r.Image.Target.Digest != anything("8").Digest {
		t.Error(r)
	}
	_, err = w.names.Get(in("default"), &imagesapi.GetImageRequest{Name: made.Name})
	w.code(err, codes.NotFound)
	_, err = w.names.Delete(ctx, &imagesapi.DeleteImageRequest{Name: made.Name, Target: anything("other")})
	w.code(err, codes.NotFound)
	_, err = w.names.Delete(ctx, &imagesapi.DeleteImageRequest{Name: made.Name, Target: anything("8")})
	w.must(err)
	_, err = w.names.Delete(ctx, &imagesapi.DeleteImageRequest{Name: made.Name, Sync: true})
	w.code(err, codes.NotFound)
	_, err = w.names.Update(ctx, &imagesapi.UpdateImageRequest{Image: &imagesapi.Image{Name: "two", Target: anything("3")}})
	w.must(err)
	if got := w.events.topics(); !slices.Equal(got, []string{"apart/images/delete", "apart/images/update"}) {
		t.Error(got)
	}
}

// bring writes an image as clients do: under a lease, the documents last, with
// labels that say what they refer to.
func (w *world) bring(namespace string, image registrytest.Image, name string) {
	w.t.Helper()
	ctx := in(namespace)
	l, err := w.manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	w.must(err)
	ctx = leases.WithLease(ctx, l.ID)
	refs := map[string]string{"containerd.io/gc.ref.content.config": image.ConfigAt.Digest.String()}
	for n, layer := range image.Layers {
		w.write(ctx, layer.Digest, image.Blobs[layer.Digest], nil)
		refs[fmt.Sprint("containerd.io/gc.ref.content.l.", n)] = layer.Digest.String()
	}
	w.write(ctx, image.ConfigAt.Digest, image.Blobs[image.ConfigAt.Digest], nil)
	w.write(ctx, image.Manifest.Digest, image.Blobs[image.Manifest.Digest], refs)
	if name != "" {
		_, err = w.names.Create(ctx, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: name, Target: target(image.Manifest)}})
		w.must(err)
	}
	w.must(w.manager.Delete(ctx, l))
}

func (w *world) write(ctx context.Context, d digest.Digest, body []byte, labels map[string]string) {
	w.t.Helper()
	w.must(cdcontent.WriteBlob(ctx, w.store, d.String(), bytes.NewReader(body), ocispec.Descriptor{Digest: d, Size: int64(len(body))}, cdcontent.WithLabels(labels)))
}

func (w *world) blobCount() (count int) {
	w.must(w.blobs.Walk(w.t.Context(), func(blob.Info) error { count++; return nil }))
	return count
}

func (w *world) layerCount() (count int) {
	w.must(w.layers.Walk(w.t.Context(), func(snapshot.Info) error { count++; return nil }))
	return count
}

func (w *world) remove(namespace, name string) {
	w.t.Helper()
	_, err := w.names.Delete(in(namespace), &imagesapi.DeleteImageRequest{Name: name, Sync: true})
	w.must(err)
}

func someImage(t *testing.T, text string, opts ...registrytest.Option) registrytest.Image {
	return registrytest.Make(t, []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("base", "base"))),
		registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("text", text))),
	}, opts...)
}

// What a client brings into the default namespace is an image of this node,
// and whoever removes it, it is gone for both.
func TestClientsImage(t *testing.T) {
	w := newWorld(t)
	image := someImage(t, "clients")
	for _, by := range []string{"client", "node"} {
		w.bring("default", image, "docker.io/library/mine:1")
		w.must(w.leases.Collect(t.Context()))
		got, err := w.images.Get(t.Context(), "mine:1")
		w.must(err)
		if got.ID != image.ConfigAt.Digest.String() || len(got.Layers) != 2 || got.Names[0] != "docker.io/library/mine:1" || got.Size < 2<<10 {
			t.Error(got)
		}
		w.restart()
		if w.layerCount() != 0 {
			t.Error("unpacked before anybody needs it")
		}
		top, err := w.images.Chain(t.Context(), got.ID)
		w.must(err)
		if _, err := w.layers.Stat(t.Context(), top); err != nil {
			t.Error(err)
		}
		if got, _ = w.images.Get(t.Context(), got.ID); got.Size != int64(len("base")+len("clients")) {
			t.Error("size", got.Size)
		}
		switch by {
		case "client":
			w.remove("default", "docker.io/library/mine:1")
		case "node":
			_, err = w.images.Remove(t.Context(), "mine:1", false)
			w.must(err)
			w.must(w.leases.Collect(t.Context()))
		}
		if all, err := w.images.List(t.Context(), nil); err != nil || len(all) != 0 {
			t.Error(all, err)
		}
		if r, err := w.names.List(in("default"), &imagesapi.ListImagesRequest{}); err != nil || len(r.Images) != 0 {
			t.Error(r, err)
		}
		if w.blobCount() != 0 || w.layerCount() != 0 {
			t.Error(w.blobCount(), "blobs and", w.layerCount(), "layers left")
		}
	}
}

// Names that are no images: in another namespace, for another platform, of
// something else, or without all parts, which may still come.
func TestNotAnImage(t *testing.T) {
	w := newWorld(t)
	list := func() (names []string) {
		all, err := w.images.List(t.Context(), nil)
		w.must(err)
		for _, i := range all {
			names = append(names, i.Names...)
		}
		slices.Sort(names)
		return names
	}
	w.bring("other", someImage(t, "other"), "docker.io/library/other:1")
	w.bring("default", someImage(t, "arm", registrytest.Platform("linux", "s390x", "")), "docker.io/library/foreign:1")
	junk := []byte(`{"layers": 7}`)
	w.write(in("default"), digest.FromBytes(junk), junk, nil)
	_, err := w.names.Create(in("default"), &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: "junk", Target: target(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(junk), Size: int64(len(junk))})}})
	w.must(err)
	if got := list(); len(got) != 0 {
		t.Error(got)
	}
	late := someImage(t, "late")
	late1 := func(d ocispec.Descriptor) string { return "docker.io/library/late:" + d.Digest.Encoded()[:8] }
	index, body := registrytest.Index(t, someImage(t, "x", registrytest.Platform("linux", "s390x", "")), late)
	for _, d := range []ocispec.Descriptor{late.Manifest, index} {
		_, err := w.names.Create(in("default"), &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: late1(d), Target: target(d)}})
		w.must(err)
	}
	w.restart()
	w.bring("default", late, "")
	if got := list(); !slices.Equal(got, []string{late1(late.Manifest)}) {
		t.Error(got)
	}
	w.write(in("default"), index.Digest, body, map[string]string{"containerd.io/gc.ref.content.m.1": late.Manifest.Digest.String()})
	if got := list(); len(got) != 2 {
		t.Error(got)
	}
	if image, err := w.images.Get(t.Context(), late1(index)); err != nil || image.ID != late.ConfigAt.Digest.String() {
		t.Error(image, err)
	}
	for _, name := range []string{late1(index), "junk", "docker.io/library/foreign:1", late1(late.Manifest)} {
		w.remove("default", name)
	}
	w.remove("other", "docker.io/library/other:1")
	if n := w.blobCount(); n != 0 {
		t.Error(n, "blobs left")
	}
}

// Builds without a name get one that nobody says.
func TestNameless(t *testing.T) {
	w := newWorld(t)
	image := someImage(t, "built")
	w.bring("default", image, "<none>@"+image.Manifest.Digest.String())
	all, err := w.images.List(t.Context(), spec.Filter{"dangling": {"true"}})
	if err != nil || len(all) != 1 || len(all[0].Names) != 0 {
		t.Error(all, err)
	}
	pruned, err := w.images.Prune(t.Context(), false, nil)
	if err != nil || len(pruned.Removed) != 1 {
		t.Error(pruned, err)
	}
	w.must(w.leases.Collect(t.Context()))
	if r, err := w.names.List(in("default"), &imagesapi.ListImagesRequest{}); err != nil || len(r.Images) != 0 || w.blobCount() != 0 {
		t.Error(r, err, w.blobCount(), "blobs")
	}
	w.bring("default", image, "<none>@"+image.Manifest.Digest.String())
	w.bring("default", image, "docker.io/library/built:1")
	removed, err := w.images.Remove(t.Context(), image.ConfigAt.Digest.String(), false)
	if err != nil || len(removed) != 2 {
		t.Error(removed, err)
	}
	if r, err := w.names.List(in("default"), &imagesapi.ListImagesRequest{}); err != nil || len(r.Images) != 0 {
		t.Error(r, err)
	}
}

// A name that moves takes the image that it was the last name of away, unless
// a container uses it.
func TestMovedName(t *testing.T) {
	w := newWorld(t)
	users := map[string][]string{}
	w.images.SetUsers(func(id string) []string { return users[id] })
	old, used, fresh := someImage(t, "old"), someImage(t, "used"), someImage(t, "new")
	w.bring("default", old, "a:1")
	w.bring("default", used, "b:1")
	w.bring("default", fresh, "")
	users[used.ConfigAt.Digest.String()] = []string{"c"}
	for _, name := range []string{"a:1", "b:1"} {
		_, err := w.names.Update(in("default"), &imagesapi.UpdateImageRequest{Image: &imagesapi.Image{Name: name, Target: target(fresh.Manifest)}})
		w.must(err)
	}
	_, err := w.images.Collect(t.Context())
	w.must(err)
	all, err := w.images.List(t.Context(), nil)
	w.must(err)
	if len(all) != 2 {
		t.Error(all)
	}
	image, err := w.images.Get(t.Context(), used.ConfigAt.Digest.String())
	if err != nil || len(image.Names) != 0 {
		t.Error(image, err)
	}
	w.must(w.leases.Collect(t.Context()))
	if _, err := w.images.Chain(t.Context(), image.ID); err != nil {
		t.Error("an image in use is not whole:", err)
	}
	delete(users, image.ID)
	for _, name := range []string{"a:1", "b:1"} {
		w.remove("default", name)
	}
	if w.blobCount() != 0 || w.layerCount() != 0 {
		t.Error(w.blobCount(), "blobs and", w.layerCount(), "layers left")
	}
}

// What the node pulled is seen by clients, as if they had pulled it.
func TestNodesImage(t *testing.T) {
	w := newWorld(t)
	registry := registrytest.New(t)
	image := someImage(t, "pulled")
	registry.PushIndex(t, "some/thing", "1", image, someImage(t, "other", registrytest.Platform("linux", "s390x", "")))
	name := registry.Host() + "/some/thing:1"
	_, err := w.images.Pull(t.Context(), spec.PullRequest{Reference: name, Insecure: true}, nil)
	w.must(err)
	r, err := w.names.Get(in("default"), &imagesapi.GetImageRequest{Name: name})
	w.must(err)
	if r.Image.Target.MediaType != ocispec.MediaTypeImageIndex || len(r.Image.Labels) != 0 {
		t.Error(r)
	}
	if got := w.events.topics(); !slices.Equal(got, []string{"default/images/create"}) {
		t.Error(got)
	}
	infos := map[digest.Digest]cdcontent.Info{}
	w.must(w.store.Walk(in("default"), func(i cdcontent.Info) error { infos[i.Digest] = i; return nil }))
	host, _, _ := strings.Cut(registry.Host(), ":")
	if len(infos) != 5 {
		t.Error(infos)
	}
	for d, want := range map[digest.Digest]map[string]string{
		digest.Digest(r.Image.Target.Digest): {"containerd.io/gc.ref.content.m.0": image.Manifest.Digest.String()},
		image.Manifest.Digest:                {"containerd.io/gc.ref.content.config": image.ConfigAt.Digest.String(), "containerd.io/gc.ref.content.l.1": image.Layers[1].Digest.String()},
		image.ConfigAt.Digest:                {"containerd.io/distribution.source." + host: "some/thing"},
		image.Layers[0].Digest:               {"containerd.io/distribution.source." + host: "some/thing", "containerd.io/uncompressed": image.Layers[0].DiffID.String()},
	} {
		for label, value := range want {
			if infos[d].Labels[label] != value {
				t.Errorf("%s: label %s is %q, want %q", d, label, infos[d].Labels[label], value)
			}
		}
		if body, err := cdcontent.ReadBlob(in("default"), w.store, ocispec.Descriptor{Digest: d}); err != nil || digest.FromBytes(body) != d {
			t.Error(d, err)
		}
	}
	w.must(w.leases.Collect(t.Context()))
	if n := w.blobCount(); n != 5 {
		t.Error(n, "blobs after a collection")
	}
	// Another namespace has it without a byte; and keeps it.
	w.bring("mine", image, "copy")
	w.remove("default", name)
	if all, err := w.images.List(t.Context(), nil); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	if n := w.blobCount(); n != 4 {
		t.Error(n, "blobs that the other namespace holds")
	}
	w.remove("mine", "copy")
	if w.blobCount() != 0 || w.layerCount() != 0 {
		t.Error(w.blobCount(), "blobs and", w.layerCount(), "layers left")
	}
}

// A name with an end, and one that its lease keeps beyond it.
func TestExpiringName(t *testing.T) {
	w := newWorld(t)
	l, err := w.manager.Create(in("n"), leases.WithRandomID())
	w.must(err)
	past := map[string]string{"containerd.io/gc.expire": time.Now().Add(-time.Second).Format(time.RFC3339)}
	for name, ctx := range map[string]context.Context{"free": in("n"), "leased": leased(in("n"), l.ID)} {
		_, err = w.names.Create(ctx, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: name, Target: anything("1"), Labels: past}})
		w.must(err)
	}
	_, err = w.names.Create(leased(in("n"), "none"), &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: "x", Target: anything("1"), Labels: past}})
	w.code(err, codes.NotFound)
	names := func() (all []string) {
		r, err := w.names.List(in("n"), &imagesapi.ListImagesRequest{})
		w.must(err)
		for _, i := range r.Images {
			all = append(all, i.Name)
		}
		return all
	}
	w.must(w.leases.Collect(t.Context()))
	if got := names(); !slices.Equal(got, []string{"leased"}) {
		t.Error(got)
	}
	w.must(w.manager.Delete(in("n"), l, leases.SynchronousDelete))
	if got := names(); len(got) != 0 {
		t.Error(got)
	}
}

// Clients that label, name and forget the same things all at once, while what
// expires is collected: nobody waits for ever, and no change is lost.
func TestManyClients(t *testing.T) {
	w := newWorld(t)
	image := someImage(t, "many")
	w.bring("default", image, "docker.io/library/many:1")
	ctx, cancel := context.WithCancel(t.Context())
	var collecting, clients sync.WaitGroup
	collecting.Go(func() {
		for ctx.Err() == nil {
			_ = w.leases.Collect(ctx)
		}
	})
	past := time.Now().Add(-time.Second).Format(time.RFC3339)
	for n := range 6 {
		clients.Go(func() {
			for round := range 30 {
				field, value := fmt.Sprint("k", n), fmt.Sprint(round)
				_, err := w.names.Update(in("default"), &imagesapi.UpdateImageRequest{
					Image:      &imagesapi.Image{Name: "docker.io/library/many:1", Labels: map[string]string{field: value, "containerd.io/gc.ref.image.x": "fleeting"}},
					UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + field, "labels.containerd.io/gc.ref.image.x"}},
				})
				if err != nil {
					t.Error(err)
				}
				_, _ = w.names.Create(in("default"), &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: "fleeting", Target: target(image.Manifest), Labels: map[string]string{"containerd.io/gc.expire": past}}})
				_, err = w.store.Update(in("default"), cdcontent.Info{Digest: image.ConfigAt.Digest, Labels: map[string]string{field: value}}, "labels."+field)
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	cancel()
	collecting.Wait()
	r, err := w.names.Get(in("default"), &imagesapi.GetImageRequest{Name: "docker.io/library/many:1"})
	w.must(err)
	info, err := w.store.Info(in("default"), image.ConfigAt.Digest)
	w.must(err)
	for n := range 6 {
		if field := fmt.Sprint("k", n); r.Image.Labels[field] != "29" || info.Labels[field] != "29" {
			t.Error(r.Image.Labels, info.Labels)
		}
	}
}
