package images_test

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/base/kv"
	"berth/face/cri/images"
	"berth/image/blob"
	"berth/image/catalog"
	"berth/image/registrytest"
	"berth/node/image"
	"berth/node/snapshot/fakesnapshot"
)

const namespace = "k8s.io"

// world is the service on a socket, a client of it, real images behind it and a
// registry to have them from.
type world struct {
	*testing.T
	set      *image.Set
	registry *registrytest.Registry
	client   api.ImageServiceClient
	pinned   []string // by the configuration
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, registry: registrytest.New(t)}
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	db, err := kv.Open(filepath.Join(dir, "db"))
	w.must(err)
	t.Cleanup(func() { _ = db.Close() })
	blobs, err := blob.Open(t.Context(), filepath.Join(dir, "blobs"), log)
	w.must(err)
	t.Cleanup(func() { _ = blobs.Close() })
	w.set, err = image.Open(t.Context(), image.Config{DB: db, Blobs: blobs, Snapshots: fakesnapshot.New(), Log: log, Spaces: []string{namespace}})
	w.must(err)
	t.Cleanup(func() { _ = w.set.Close() })
	service := images.New(images.Config{
		Images: w.set.Space(namespace), Disk: w.set, Path: dir, Log: log, Patience: 300 * time.Millisecond,
		Pinned: func(name string) bool { return slices.Contains(w.pinned, name) },
		Handler: func(name string) error {
			if name == "" || name == "runc" {
				return nil
			}
			return errs.New(errs.NotFound, "there is no runtime %q", name)
		},
	})
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	w.must(err)
	server := grpc.NewServer()
	service.Register(server)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("unix:"+filepath.Join(dir, "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	t.Cleanup(func() { _ = conn.Close(); server.Stop(); serving.Wait() })
	w.client = api.NewImageServiceClient(conn)
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// push puts an image with a user into the registry and returns its name.
func (w *world) push(repository, tag, user string) (name string, made registrytest.Image) {
	w.Helper()
	made = registrytest.Make(w.T, []registrytest.Layer{registrytest.Gzip(w.T, registrytest.Tar(w.T, registrytest.Text("of", repository)))},
		registrytest.Runs(ocispec.ImageConfig{User: user, Cmd: []string{"/sh"}}))
	w.registry.Push(w.T, repository, tag, made)
	return w.registry.Host() + "/" + repository + ":" + tag, made
}

func of(name string) *api.ImageSpec { return &api.ImageSpec{Image: name} }

func (w *world) pull(name string) string {
	w.Helper()
	answer, err := w.client.PullImage(w.Context(), &api.PullImageRequest{Image: of(name)})
	w.must(err)
	return answer.GetImageRef()
}

func (w *world) status(name string) *api.Image {
	w.Helper()
	answer, err := w.client.ImageStatus(w.Context(), &api.ImageStatusRequest{Image: of(name)})
	w.must(err)
	return answer.GetImage()
}

func (w *world) list() []*api.Image {
	w.Helper()
	answer, err := w.client.ListImages(w.Context(), &api.ListImagesRequest{})
	w.must(err)
	return answer.GetImages()
}

func TestPullAndRemove(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	name, made := w.push("lib/a", "v1", "1002")
	if w.status(name) != nil || len(w.list()) != 0 {
		t.Error("there is something")
	}
	id := w.pull(name)
	is := w.status(name)
	digest := strings.TrimSuffix(name, ":v1") + "@" + made.Manifest.Digest.String()
	if is.GetId() != id || !slices.Equal(is.GetRepoTags(), []string{name}) || !slices.Equal(is.GetRepoDigests(), []string{digest}) || is.GetSize() == 0 || is.GetPinned() {
		t.Errorf("%v", is)
	}
	for _, ref := range []string{id, strings.TrimPrefix(id, "sha256:"), id[:19], digest} {
		if !proto.Equal(w.status(ref), is) {
			t.Errorf("%s: %v", ref, w.status(ref))
		}
	}
	listed, err := w.client.ListImages(ctx, &api.ListImagesRequest{Filter: &api.ImageFilter{Image: of(name)}})
	w.must(err)
	if len(listed.GetImages()) != 1 || !proto.Equal(listed.GetImages()[0], is) {
		t.Error("listed by name:", listed)
	}
	listed, err = w.client.ListImages(ctx, &api.ListImagesRequest{Filter: &api.ImageFilter{Image: of("none")}})
	w.must(err)
	if len(listed.GetImages()) != 0 {
		t.Error("listed by another name:", listed)
	}
	verbose, err := w.client.ImageStatus(ctx, &api.ImageStatusRequest{Image: of(id), Verbose: true})
	w.must(err)
	if !strings.Contains(verbose.GetInfo()["info"], `"Cmd":["/sh"]`) {
		t.Error(verbose.GetInfo())
	}
	// Pulled by its digest alone it has no tag.
	by, other := w.push("lib/b", "v1", "")
	by = strings.TrimSuffix(by, ":v1") + "@" + other.Manifest.Digest.String()
	w.pull(by)
	if is := w.status(by); len(is.GetRepoTags()) != 0 || !slices.Equal(is.GetRepoDigests(), []string{by}) {
		t.Error(is)
	}
	stream, err := w.client.StreamImages(ctx, &api.StreamImagesRequest{})
	w.must(err)
	var streamed int
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		w.must(err)
		streamed += len(part.GetImages())
	}
	if streamed != 2 {
		t.Error("streamed", streamed)
	}
	// Several remove it at once, by its ID; each finds it gone.
	var removals sync.WaitGroup
	for range 5 {
		removals.Go(func() {
			if _, err := w.client.RemoveImage(ctx, &api.RemoveImageRequest{Image: of(id)}); err != nil {
				t.Error(err)
			}
			if w.status(id) != nil {
				t.Error("still there")
			}
		})
	}
	removals.Wait()
	for _, none := range []string{name, strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64), by} {
		_, err = w.client.RemoveImage(ctx, &api.RemoveImageRequest{Image: of(none)})
		w.must(err)
	}
	if all := w.list(); len(all) != 0 {
		t.Error("left:", all)
	}
}

func TestRemoveTakesAllTags(t *testing.T) {
	w := newWorld(t)
	one, made := w.push("lib/a", "v1", "")
	w.registry.Push(t, "lib/a", "v2", made)
	w.registry.Push(t, "elsewhere/a", "v1", made)
	names := []string{w.registry.Host() + "/elsewhere/a:v1", one, w.registry.Host() + "/lib/a:v2"}
	for _, name := range names {
		w.pull(name)
	}
	if all := w.list(); len(all) != 1 || !slices.Equal(all[0].GetRepoTags(), names) || len(all[0].GetRepoDigests()) != 2 {
		t.Error(all)
	}
	_, err := w.client.RemoveImage(t.Context(), &api.RemoveImageRequest{Image: of(one)})
	w.must(err)
	if all := w.list(); len(all) != 0 || w.status(names[0]) != nil {
		t.Error(all)
	}
}

func TestUsers(t *testing.T) {
	w := newWorld(t)
	for user, want := range map[string]struct {
		uid  *api.Int64Value
		name string
	}{
		"":              {&api.Int64Value{}, ""},
		"1002":          {&api.Int64Value{Value: 1002}, ""},
		"1003:1004":     {&api.Int64Value{Value: 1003}, ""},
		"www-data":      {nil, "www-data"},
		"www-data:1004": {nil, "www-data"},
	} {
		name, _ := w.push("lib/user", "v1", user)
		w.pull(name)
		if is := w.status(name); !proto.Equal(is.GetUid(), want.uid) || is.GetUsername() != want.name {
			t.Errorf("%q is %v", user, is)
		}
	}
}

func TestPinned(t *testing.T) {
	w := newWorld(t)
	name, made := w.push("lib/pause", "v1", "")
	w.pinned = []string{name}
	w.pull(name)
	if !w.status(name).GetPinned() {
		t.Error("not pinned by the configuration")
	}
	// A client of containerd's protocol gives the label.
	labelled, err := w.set.CreateName(t.Context(), namespace, "", catalog.Record{
		Name: "docker.io/library/other:1", Target: made.Manifest, Labels: map[string]string{images.PinnedLabel: "pinned"},
	})
	w.must(err)
	w.pinned = nil
	if is := w.status(labelled.Name); !is.GetPinned() || len(is.GetRepoTags()) != 2 {
		t.Error(is)
	}
	// It is advice: who asks for the removal gets it.
	_, err = w.client.RemoveImage(t.Context(), &api.RemoveImageRequest{Image: of(name)})
	w.must(err)
	if w.status(name) != nil {
		t.Error("it stays")
	}
}

func TestCredentials(t *testing.T) {
	w := newWorld(t)
	name, _ := w.push("private/a", "v1", "")
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:secret"))
	w.registry.Break(registrytest.Fault{
		Match: func(r *http.Request) bool {
			return r.Header.Get("Authorization") != basic && r.Header.Get("Authorization") != "Bearer token"
		},
		Handler: registrytest.Status(http.StatusUnauthorized, "Www-Authenticate", `Basic realm="here"`),
	})
	for what, auth := range map[string]*api.AuthConfig{
		"user and password": {Username: "me", Password: "secret"},
		"auth":              {Auth: base64.StdEncoding.EncodeToString([]byte("me:secret"))},
		"its server":        {Username: "me", Password: "secret", ServerAddress: "http://" + w.registry.Host() + "/v2/"},
		"token":             {RegistryToken: "token"},
	} {
		answer, err := w.client.PullImage(t.Context(), &api.PullImageRequest{Image: of(name), Auth: auth})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		_, err = w.client.RemoveImage(t.Context(), &api.RemoveImageRequest{Image: of(answer.GetImageRef())})
		w.must(err)
	}
	for what, auth := range map[string]*api.AuthConfig{
		"none": nil, "empty": {}, "wrong": {Username: "me", Password: "wrong"}, "of another": {Username: "me", Password: "secret", ServerAddress: "example.com"},
	} {
		_, err := w.client.PullImage(t.Context(), &api.PullImageRequest{Image: of(name), Auth: auth})
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied && code != codes.NotFound {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, broken := range []string{"%%%", base64.StdEncoding.EncodeToString([]byte("nobody"))} {
		_, err := w.client.PullImage(t.Context(), &api.PullImageRequest{Image: of(name), Auth: &api.AuthConfig{Auth: broken}})
		if status.Code(err) != codes.InvalidArgument || strings.Contains(err.Error(), broken) {
			t.Error(err)
		}
	}
}

func TestPullsThatFail(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	name, made := w.push("lib/a", "v1", "")
	pull := func(ctx context.Context, spec *api.ImageSpec, want codes.Code) {
		t.Helper()
		if _, err := w.client.PullImage(ctx, &api.PullImageRequest{Image: spec}); status.Code(err) != want {
			t.Errorf("%v: %v, want %s", spec, err, want)
		}
	}
	pull(ctx, nil, codes.InvalidArgument)
	pull(ctx, of("UPPER"), codes.InvalidArgument)
	pull(ctx, of(w.registry.Host()+"/lib/none:v1"), codes.NotFound)
	pull(ctx, &api.ImageSpec{Image: name, RuntimeHandler: "none"}, codes.NotFound)
	w.registry.Break(registrytest.Fault{Match: registrytest.Blobs(made.Layers[0].Digest), Handler: registrytest.Stall(3)})
	pull(ctx, of(name), codes.DeadlineExceeded) // nothing comes any more
	hasty, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	pull(hasty, of(name), codes.DeadlineExceeded)
	w.registry.Mend()
	if len(w.list()) != 0 {
		t.Error("something is there:", w.list())
	}
	pull(ctx, &api.ImageSpec{Image: name, RuntimeHandler: "runc"}, codes.OK)
	if _, err := w.client.ImageStatus(ctx, &api.ImageStatusRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Error("of no image:", err)
	}
	if _, err := w.client.RemoveImage(ctx, &api.RemoveImageRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Error("no image:", err)
	}
}

func TestDisk(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	used := func() (bytes, inodes uint64) {
		t.Helper()
		answer, err := w.client.ImageFsInfo(ctx, &api.ImageFsInfoRequest{})
		w.must(err)
		i, c := answer.GetImageFilesystems(), answer.GetContainerFilesystems()
		if len(i) != 1 || len(c) != 1 || i[0].GetTimestamp() == 0 || i[0].GetFsId().GetMountpoint() == "" || i[0].GetFsId().GetMountpoint() != c[0].GetFsId().GetMountpoint() {
			t.Fatal(answer)
		}
		return i[0].GetUsedBytes().GetValue(), i[0].GetInodesUsed().GetValue()
	}
	before, nodes := used()
	name, _ := w.push("lib/a", "v1", "")
	w.pull(name)
	after, more := used()
	if after <= before || more <= nodes {
		t.Errorf("a pull took %d to %d bytes, %d to %d inodes", before, after, nodes, more)
	}
	_, err := w.client.RemoveImage(ctx, &api.RemoveImageRequest{Image: of(name)})
	w.must(err)
	if last, left := used(); last != before || left != nodes {
		t.Errorf("after a removal %d bytes, %d inodes; before the pull %d and %d", last, left, before, nodes)
	}
}
