package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health_v1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/base/kv"
	"berth/face/containerd"
	"berth/face/containerd/events"
	"berth/node/lease"
	"berth/node/namespace"
)

// odd is a service whose methods do what none should.
type odd struct {
	containersapi.UnimplementedContainersServer
}

// Register implements containerd.Service.
func (o *odd) Register(r grpc.ServiceRegistrar) { containersapi.RegisterContainersServer(r, o) }

func (*odd) Get(context.Context, *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	panic("never mind")
}

func (*odd) ListStream(*containersapi.ListContainersRequest, containersapi.Containers_ListStreamServer) error {
	panic(errors.New("never mind"))
}

func (*odd) Create(_ context.Context, r *containersapi.CreateContainerRequest) (*containersapi.CreateContainerResponse, error) {
	return &containersapi.CreateContainerResponse{Container: r.GetContainer()}, nil
}

func (*odd) Delete(context.Context, *containersapi.DeleteContainerRequest) (*emptypb.Empty, error) {
	return nil, errs.New(errs.Conflict, "it runs")
}

// world is a server and its clients.
type world struct {
	socket     string
	namespaces *namespace.Set
	leases     *lease.Set
	held       []string
	log        *bytes.Buffer
	stop       func() error
}

func serve(t *testing.T, more ...containerd.Service) *world {
	t.Helper()
	w := &world{socket: filepath.Join(t.TempDir(), "s"), log: &bytes.Buffer{}}
	db, err := kv.Open(w.socket + ".db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w.namespaces, err = namespace.Open(t.Context(), db, func(context.Context, string) ([]string, error) { return w.held, nil })
	if err != nil {
		t.Fatal(err)
	}
	if w.leases, err = lease.Open(lease.Config{DB: db, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&locked{w: w.log}, nil))
	exchange := events.New(log)
	server := containerd.Server{Namespaces: w.namespaces, Log: log}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- server.Serve(ctx, listener, append(more,
			containerd.NewVersion("v1.2.3 dirty", "abc"), events.NewService(exchange),
			&containerd.Namespaces{Set: w.namespaces, Events: exchange, Leases: w.leases},
			&containerd.Introspection{
				ID: "node", Root: "/r", Snapshotters: []containerd.Snapshotter{{Name: "overlayfs", Capabilities: []string{"rebase"}}},
				Runtime: func(_ context.Context, name string) (string, []byte, error) {
					if name != "io.containerd.runc.v2" {
						return "", nil, errs.New(errs.NotFound, "no runtime %s", name)
					}
					return "runc 9", []byte(`{"mountOptions":["rro"]}`), nil
				},
			})...)
	}()
	w.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = w.stop() })
	return w
}

// locked is a buffer that several may write to.
type locked struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (w *world) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func connection(t *testing.T, c *client.Client) *grpc.ClientConn {
	t.Helper()
	conn, ok := c.Conn().(*grpc.ClientConn)
	if !ok {
		t.Fatalf("the client's connection is a %T", c.Conn())
	}
	return conn
}

func in(t *testing.T, name string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), name), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestVersionAndHealth(t *testing.T) {
	c := serve(t).client(t)
	v, err := c.Version(t.Context())
	if err != nil || v.Version != "v2.4.2+berth.v1.2.3-dirty" || v.Revision != "abc" {
		t.Errorf("%+v, %v", v, err)
	}
	if ok, err := c.IsServing(t.Context()); err != nil || !ok {
		t.Errorf("serving: %v, %v", ok, err)
	}
}

func TestNamespaces(t *testing.T) {
	w := serve(t)
	c, ctx := w.client(t), in(t, "any")
	store := c.NamespaceService()
	if err := store.Create(ctx, "moby", map[string]string{"a": "1"}); err != nil {
		t.Fatal(err)
	}
	if err := store.Create(ctx, "moby", nil); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice: %v", err)
	}
	for _, bad := range []string{"", "a/b", "..", strings.Repeat("x", 80)} {
		if err := store.Create(ctx, bad, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("namespace %q: %v", bad, err)
		}
	}
	if err := store.SetLabel(ctx, "moby", "b", "2"); err != nil {
		t.Fatal(err)
	}
	if err := store.SetLabel(ctx, "moby", "a", ""); err != nil {
		t.Fatal(err)
	}
	if labels, err := store.Labels(ctx, "moby"); err != nil || len(labels) != 1 || labels["b"] != "2" {
		t.Errorf("labels %v, %v", labels, err)
	}
	if labels, err := store.Labels(ctx, "never-used"); err != nil || len(labels) != 0 {
		t.Errorf("labels of none: %v, %v", labels, err)
	}
	if list, err := store.List(ctx); err != nil || fmt.Sprint(list) != "[default moby]" {
		t.Errorf("there are %v, %v", list, err)
	}
	_, err := namespacesapi.NewNamespacesClient(connection(t, c)).Update(ctx, &namespacesapi.UpdateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: "moby", Labels: map[string]string{"c": "3"}}})
	if err != nil {
		t.Fatal(err)
	}
	if labels, _ := store.Labels(ctx, "moby"); labels["c"] != "3" || len(labels) != 1 {
		t.Errorf("labels %v", labels)
	}
	w.held = []string{"images"}
	if err := store.Delete(ctx, "moby"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "must be empty, but it still has images") {
		t.Errorf("a full one: %v", err)
	}
	w.held = nil
	for _, name := range []string{"moby", "other"} {
		if _, err := w.leases.Create(ctx, name, "l", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Delete(ctx, "moby"); err != nil {
		t.Error(err)
	}
	if len(w.leases.List("moby")) != 0 || len(w.leases.List("other")) != 1 {
		t.Errorf("leases %v and %v", w.leases.List("moby"), w.leases.List("other"))
	}
	if err := store.Delete(ctx, "moby"); !errdefs.IsNotFound(err) {
		t.Errorf("deleted twice: %v", err)
	}
}

// A namespace comes to be when something is made in it, and only then.
func TestNamespacesByUse(t *testing.T) {
	w := serve(t, &odd{})
	service := containersapi.NewContainersClient(connection(t, w.client(t)))
	if _, err := service.Delete(in(t, "looked-at"), &containersapi.DeleteContainerRequest{}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("a plain error: %v", err)
	}
	if _, err := service.Create(in(t, "used"), &containersapi.CreateContainerRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.namespaces.Get("looked-at"); ok {
		t.Error("who looks makes a namespace")
	}
	if _, ok := w.namespaces.Get("used"); !ok {
		t.Error("there is no namespace of what was made in it")
	}
	for header, want := range map[string]codes.Code{"": codes.FailedPrecondition, "../x": codes.InvalidArgument} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", header)
		if _, err := service.Create(ctx, &containersapi.CreateContainerRequest{}); status.Code(err) != want {
			t.Errorf("namespace %q: %v", header, err)
		}
	}
	if _, err := service.Create(t.Context(), &containersapi.CreateContainerRequest{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "namespace is required") {
		t.Errorf("without a namespace: %v", err)
	}
}

func TestIntrospection(t *testing.T) {
	c := serve(t).client(t)
	ctx := t.Context()
	server, err := c.Server(ctx)
	if err != nil || len(server.UUID) != 36 {
		t.Errorf("%+v, %v", server, err)
	}
	again, err := serve(t).client(t).Server(ctx)
	if err != nil || again.UUID != server.UUID {
		t.Errorf("another id of the same node: %v, %v", again, err)
	}
	service := c.IntrospectionService()
	for filter, want := range map[string]int{
		"type==io.containerd.runtime.v2": 1, `type=="io.containerd.snapshotter.v1"`: 1, "id==restart": 1, "id==none": 0,
		"type==io.containerd.snapshotter.v1, id==overlayfs": 1, "id==opt": 1,
	} {
		got, err := service.Plugins(ctx, filter)
		if err != nil || len(got.GetPlugins()) != want {
			t.Errorf("filter %q: %v, %v", filter, got, err)
		}
	}
	if _, err := service.Plugins(ctx, "type=="); !errdefs.IsInvalidArgument(err) {
		t.Errorf("half a filter: %v", err)
	}
	if has, err := c.GetSnapshotterCapabilities(ctx, "overlayfs"); err != nil || fmt.Sprint(has) != "[rebase]" {
		t.Errorf("capabilities %v, %v", has, err)
	}
	if _, err := c.GetSnapshotterSupportedPlatforms(ctx, "overlayfs"); err != nil {
		t.Error(err)
	}
	info, err := c.RuntimeInfo(ctx, "io.containerd.runc.v2", nil)
	if err != nil || info.Version.Version != "runc 9" {
		t.Fatalf("%+v, %v", info, err)
	}
	if can, ok := info.Features.(*features.Features); !ok || fmt.Sprint(can.MountOptions) != "[rro]" {
		t.Errorf("features %+v", info.Features)
	}
	if _, err := c.RuntimeInfo(ctx, "io.containerd.none.v1", nil); !errdefs.IsNotFound(err) {
		t.Errorf("no such runtime: %v", err)
	}
	if _, err := service.PluginInfo(ctx, "io.containerd.none.v1", "x", nil); !errdefs.IsNotFound(err) {
		t.Errorf("no such plug-in: %v", err)
	}
	raw := introspectionapi.NewIntrospectionClient(connection(t, c))
	for _, r := range []*introspectionapi.PluginInfoRequest{
		{Type: "io.containerd.runtime.v2", ID: "task", Options: &anypb.Any{TypeUrl: "containerd.types.RuntimeRequest", Value: []byte{0xff, 0xff}}},
		{Type: "io.containerd.gc.v1", ID: "scheduler", Options: &anypb.Any{TypeUrl: "x"}},
	} {
		_, err := raw.PluginInfo(ctx, r)
		if c := status.Code(err); c != codes.InvalidArgument && c != codes.Unimplemented {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// garbage is a message that is none.
type garbage struct{}

func (garbage) Marshal(any) ([]byte, error) { return []byte("\xff\xff\xff not a message"), nil }
func (garbage) Unmarshal([]byte, any) error { return nil }
func (garbage) Name() string                { return "proto" }

func TestGarbage(t *testing.T) {
	w := serve(t, &odd{})
	conn := connection(t, w.client(t))
	service, ctx := containersapi.NewContainersClient(conn), in(t, "ns")
	for method, want := range map[string]codes.Code{
		"/containerd.services.none.v1.None/Get":             codes.Unimplemented,
		"/containerd.services.containers.v1.Containers/Nop": codes.Unimplemented,
		"/containerd.services.containers.v1.Containers/Get": codes.Internal, // of gRPC: the message cannot be read
		"": codes.Unimplemented,
	} {
		err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}, grpc.ForceCodec(garbage{}))
		if got := status.Code(err); got != want && method != "" || err == nil {
			t.Errorf("%q: %v, want %s", method, err, want)
		}
	}
	big := &containersapi.CreateContainerRequest{Container: &containersapi.Container{ID: strings.Repeat("x", 17<<20)}}
	if _, err := service.Create(ctx, big, grpc.MaxCallSendMsgSize(64<<20)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("17 MiB: %.200v", err)
	}
	fits := &containersapi.CreateContainerRequest{Container: &containersapi.Container{ID: strings.Repeat("x", 15<<20)}}
	if _, err := service.Create(ctx, fits); err != nil {
		t.Errorf("15 MiB: %.200v", err)
	}
	if _, err := service.Get(ctx, &containersapi.GetContainerRequest{}); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "never mind") {
		t.Errorf("a panic: %v", err)
	}
	stream, err := service.ListStream(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("a panic in a stream: %v", err)
	}
	if _, err := service.Create(ctx, &containersapi.CreateContainerRequest{}); err != nil {
		t.Errorf("after all that: %v", err)
	}
	_ = w.stop()
	if log := w.log.String(); strings.Count(log, "a handler panicked") != 2 || !strings.Contains(log, "server_test.go") {
		t.Errorf("the log says %s", log)
	}
}

// Who waits for something is let go when the server stops, and told why.
func TestStop(t *testing.T) {
	w := serve(t)
	c, ctx := w.client(t), in(t, "ns")
	_, failed := c.EventService().Subscribe(ctx)
	watch, err := health_v1.NewHealthClient(connection(t, c)).Watch(ctx, &health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := w.stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := <-failed; status.Code(err) != codes.Unavailable && !errdefs.IsUnavailable(err) {
		t.Errorf("the subscriber hears %v", err)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watcher hears %v", err)
	}
}
