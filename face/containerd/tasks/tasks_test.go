package tasks_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/base/kv"
	"berth/face/containerd/events"
	"berth/face/containerd/tasks"
	"berth/node/container"
	"berth/node/sandbox"
	"berth/spec"
)

// world is the services on a socket, and a client.
type world struct {
	*client.Client
	set      *set
	leases   *leases
	blobs    *blobs
	mounts   *mounter
	exchange *events.Exchange
	restores string
}

func open(t *testing.T, unified bool) *world {
	t.Helper()
	dir := t.TempDir()
	quiet := slog.New(slog.DiscardHandler)
	w := &world{
		set: newSet(), leases: &leases{}, blobs: &blobs{data: map[string][]byte{}}, mounts: &mounter{}, exchange: events.New(quiet),
		restores: filepath.Join(dir, "restore"),
	}
	db, err := kv.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	sandboxes, err := sandbox.Open(db, "boot")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	(&tasks.Containers{Set: w.set, Events: w.exchange, Leases: w.leases}).Register(server)
	(&tasks.Tasks{
		Givens: w.set, Running: w.set, Controls: w.set, Meter: meter{unified}, Contents: w.blobs, Mounts: w.mounts, Making: filepath.Join(w.restores, "new"), Restored: filepath.Join(w.restores, "restored"), Log: quiet,
	}).Register(server)
	(&tasks.Sandboxes{
		Set: sandboxes, Events: w.exchange, Leases: w.leases, Plain: func(name string) bool { return name == container.RuntimeV2 },
	}).Register(server)
	events.NewService(w.exchange).Register(server)
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	if w.Client, err = client.New(socket, client.WithDefaultRuntime(container.RuntimeV2)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// nothingLeft: no checkpoint is on disk.
func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(w.restores, "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func in(t *testing.T, namespace string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), namespace), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func record(id string) containers.Container {
	return containers.Container{
		ID: id, Labels: map[string]string{"color": "red", "a.b/c": "d"}, Image: "img:1",
		Runtime:     containers.RuntimeInfo{Name: container.RuntimeV2, Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte("opaque")}},
		Spec:        &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(`{"ociVersion":"1.2.0"}`)},
		SnapshotKey: "key-" + id, Snapshotter: "overlayfs", SandboxID: "pod",
		Extensions: map[string]typeurl.Any{"x": &anypb.Any{TypeUrl: "t", Value: []byte{0, 1, 2}}},
	}
}

func TestContainers(t *testing.T) {
	w, ctx := open(t, false), in(t, "ns")
	store := w.ContainerService()
	made, err := store.Create(ctx, record("c1"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.Get(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	want := record("c1")
	if got.Image != want.Image || got.Labels["a.b/c"] != "d" || string(got.Spec.GetValue()) != string(want.Spec.GetValue()) ||
		string(got.Runtime.Options.GetValue()) != "opaque" || string(got.Extensions["x"].GetValue()) != "\x00\x01\x02" ||
		got.SandboxID != "pod" || got.SnapshotKey != "key-c1" || !got.CreatedAt.Equal(made.CreatedAt) {
		t.Errorf("kept %+v of %+v", got, want)
	}
	if len(w.leases.held) != 1 || w.leases.held[0].ID != "key-c1" || w.leases.released != 1 {
		t.Errorf("held %v while it was made, let go of %d", w.leases.held, w.leases.released)
	}
	if _, err := store.Create(ctx, record("c1")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	if _, err := store.Create(in(t, "other"), record("c1")); err != nil {
		t.Errorf("in another namespace: %v", err)
	}
	if _, err := store.Create(ctx, record("c2")); err != nil {
		t.Fatal(err)
	}
	for filter, want := range map[string]int{"": 2, "id==c1": 1, "labels.color==red": 2, `labels."a.b/c"==d`: 2, "labels.color==blue": 0, "runtime.name==io.containerd.runc.v2": 2, "image~=^img": 2, "nothing": 0} {
		list, err := store.List(ctx, strings.Fields(filter)...)
		if err != nil || len(list) != want {
			t.Errorf("filter %q: %d, %v; want %d", filter, len(list), err, want)
		}
	}
	if _, err := store.List(ctx, "id=="); !errdefs.IsInvalidArgument(err) {
		t.Errorf("half a filter: %v", err)
	}
	if err := store.Delete(ctx, "c2"); err != nil || w.leases.triggered != 1 {
		t.Errorf("deleted: %v, %d collections", err, w.leases.triggered)
	}
	if err := store.Delete(ctx, "c2"); !errdefs.IsNotFound(err) {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := store.Get(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "namespace is required") {
		t.Errorf("without a namespace: %v", err)
	}
}

func TestWhatContainersCannotBe(t *testing.T) {
	w, ctx := open(t, false), in(t, "ns")
	for name, spoil := range map[string]func(*containers.Container){
		"no id":                    func(c *containers.Container) { c.ID = "" },
		"an id that is a path":     func(c *containers.Container) { c.ID = "../c" },
		"no runtime":               func(c *containers.Container) { c.Runtime.Name = "" },
		"no spec":                  func(c *containers.Container) { c.Spec = nil },
		"a key and no snapshotter": func(c *containers.Container) { c.Snapshotter = "" },
		"a label that is too long": func(c *containers.Container) { c.Labels["x"] = strings.Repeat("y", 5000) },
		"a nameless label":         func(c *containers.Container) { c.Labels[""] = "y" },
		"a nameless extension":     func(c *containers.Container) { c.Extensions[""] = c.Extensions["x"] },
	} {
		c := record("c")
		spoil(&c)
		if _, err := w.ContainerService().Create(ctx, c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpdateContainers(t *testing.T) {
	w, ctx := open(t, false), in(t, "ns")
	store := w.ContainerService()
	if _, err := store.Create(ctx, record("c")); err != nil {
		t.Fatal(err)
	}
	change := containers.Container{
		ID: "c", Labels: map[string]string{"color": "blue", "size": "big"}, Image: "img:2",
		Runtime: containers.RuntimeInfo{Name: "other"}, Spec: &anypb.Any{TypeUrl: "s", Value: []byte("new")},
	}
	got, err := store.Update(ctx, change, "labels.color", "labels.a.b/c", "image")
	if err != nil {
		t.Fatal(err)
	}
	if got.Image != "img:2" || got.Labels["color"] != "blue" || len(got.Labels) != 1 || string(got.Spec.GetValue()) == "new" || got.Runtime.Name != container.RuntimeV2 {
		t.Errorf("changed to %+v", got)
	}
	if got, err = store.Update(ctx, change, "spec", "labels", "snapshotkey"); err != nil || string(got.Spec.GetValue()) != "new" || got.Labels["size"] != "big" || got.SnapshotKey != "" {
		t.Errorf("changed to %+v, %v", got, err)
	}
	for _, path := range []string{"runtime", "id", "snapshotter", "nonsense"} {
		if _, err := store.Update(ctx, change, path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("field %s: %v", path, err)
		}
	}
	if _, err := store.Update(ctx, change); !errdefs.IsInvalidArgument(err) {
		t.Errorf("another runtime: %v", err)
	}
	change.Runtime.Name, change.Snapshotter = container.RuntimeV2, "overlayfs"
	if got, err = store.Update(ctx, change); err != nil || len(got.Extensions) != 0 {
		t.Errorf("all of it: %+v, %v", got, err)
	}
	change.ID = "none"
	if _, err := store.Update(ctx, change, "image"); !errdefs.IsNotFound(err) {
		t.Errorf("none: %v", err)
	}
}

func TestTaskLife(t *testing.T) {
	w, ctx := open(t, false), in(t, "ns")
	if _, err := w.ContainerService().Create(ctx, record("c")); err != nil {
		t.Fatal(err)
	}
	service := w.TaskService()
	if _, err := service.Create(ctx, &api.CreateTaskRequest{ContainerID: "none"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("of no container: %v", err)
	}
	made, err := service.Create(ctx, &api.CreateTaskRequest{
		ContainerID: "c", Stdin: "/in", Stdout: "/out", Stderr: "/err", Terminal: true,
		Rootfs: []*types.Mount{{Type: "loop", Source: "/l"}, {Type: "bind", Source: "/r", Options: []string{"ro"}}},
	})
	if err != nil || made.GetPid() != 100 {
		t.Fatal(made, err)
	}
	req, _ := w.set.last.(container.TaskRequest)
	if req.Streams != (container.Streams{Stdin: "/in", Stdout: "/out", Stderr: "/err"}) || !req.Terminal || req.Options != nil ||
		len(req.Rootfs) != 1 || req.Rootfs[0].Source != "/r" || req.Rootfs[0].Options[0] != "ro" {
		t.Errorf("asked for %+v", req)
	}
	c, err := w.LoadContainer(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	one, err := c.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	status := func(want client.ProcessStatus) {
		t.Helper()
		if got, err := one.Status(ctx); err != nil || got.Status != want {
			t.Errorf("it is %v, %v; want %s", got, err, want)
		}
	}
	status(client.Created)
	exits, err := one.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		do   func(context.Context) error
		want client.ProcessStatus
	}{{one.Start, client.Running}, {one.Pause, client.Paused}, {one.Resume, client.Running}} {
		if err := step.do(ctx); err != nil {
			t.Error(err)
		}
		status(step.want)
	}
	if _, err := one.Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("deleted while it runs: %v", err)
	}
	if err := one.Resize(ctx, 80, 24); err != nil || !w.set.saw("resize ns/c/ 24x80") {
		t.Errorf("%v, %v", err, w.set.seen)
	}
	limit := int64(5)
	if err := one.Update(ctx, client.WithResources(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}), client.WithAnnotations(map[string]string{"a": "b"})); err != nil || !w.set.saw("update ns/c 5 b") {
		t.Errorf("%v, %v", err, w.set.seen)
	}
	if err := one.CloseIO(ctx, client.WithStdinCloser); err != nil || !w.set.saw("close ns/c/") {
		t.Errorf("%v, %v", err, w.set.seen)
	}
	checkPids(ctx, t, one)
	checkExec(ctx, t, w, one)
	if err := one.Kill(ctx, syscall.SIGTERM); err != nil || !w.set.saw("kill ns/c/ 15 false") {
		t.Errorf("%v, %v", err, w.set.seen)
	}
	if exit := <-exits; exit.ExitCode() != 143 || exit.ExitTime().Unix() != 1700000000 || exit.Error() != nil {
		t.Errorf("ended as %+v", exit)
	}
	if err := one.Kill(ctx, syscall.SIGTERM); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "process already finished") {
		t.Errorf("killed after its end: %v", err)
	}
	if exit, err := one.Delete(ctx); err != nil || exit.ExitCode() != 143 {
		t.Errorf("deleted: %v, %v", exit, err)
	}
	if fmt.Sprint(w.mounts.seen) != "[release ns/none loop c release ns/c]" {
		t.Errorf("mounted and released %v", w.mounts.seen)
	}
	within := []*types.Mount{{Type: "bind", Source: "/r"}, {Type: "tmpfs", Source: "tmpfs", Target: "tmp"}}
	if _, err := service.Create(ctx, &api.CreateTaskRequest{ContainerID: "d", Rootfs: within}); !errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		t.Errorf("with a mount within its root: %v", err)
	}
	if _, err := c.Task(ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("after deletion: %v", err)
	}
}

func checkPids(ctx context.Context, t *testing.T, one client.Task) {
	t.Helper()
	pids, err := one.Pids(ctx)
	if err != nil || len(pids) != 2 || pids[0].Info != nil {
		t.Fatal(pids, err)
	}
	details, err := typeurl.UnmarshalAny(pids[1].Info)
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := details.(*options.ProcessDetails); !ok || d.GetExecID() != "e" {
		t.Errorf("the second process is %v", details)
	}
}

func checkExec(ctx context.Context, t *testing.T, w *world, one client.Task) {
	t.Helper()
	request := &api.ExecProcessRequest{
		ContainerID: one.ID(), ExecID: "e", Stdout: "/o",
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: []byte(`{"args":["true"]}`)},
	}
	if _, err := w.TaskService().Exec(ctx, request); err != nil {
		t.Fatal(err)
	}
	req, _ := w.set.last.(container.ExecRequest)
	if string(req.Process) != `{"args":["true"]}` || req.Streams.Stdout != "/o" {
		t.Errorf("asked for %+v", req)
	}
	if _, err := w.TaskService().Exec(ctx, request); !errdefs.IsAlreadyExists(errgrpc.ToNative(err)) {
		t.Errorf("twice: %v", err)
	}
	for _, id := range []string{"", "../e"} {
		request.ExecID = id
		if _, err := w.TaskService().Exec(ctx, request); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
			t.Errorf("exec %q: %v", id, err)
		}
	}
	p, err := one.LoadProcess(ctx, "e", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(ctx); err != nil || p.Pid() != 500 {
		t.Errorf("started: %v, %d", err, p.Pid())
	}
	exits, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.set.end("ns", one.ID(), "e", 3)
	if exit := <-exits; exit.ExitCode() != 3 {
		t.Errorf("ended as %+v", exit)
	}
	if exit, err := p.Delete(ctx); err != nil || exit.ExitCode() != 3 {
		t.Errorf("deleted: %v, %v", exit, err)
	}
	if _, err := w.TaskService().DeleteProcess(ctx, &api.DeleteProcessRequest{ContainerID: one.ID()}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("a nameless exec deleted: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	for _, unified := range []bool{false, true} {
		w, ctx := open(t, unified), in(t, "ns")
		for _, id := range []string{"a", "b", "gone"} {
			if _, err := w.ContainerService().Create(ctx, record(id)); err != nil {
				t.Fatal(err)
			}
			if _, err := w.TaskService().Create(ctx, &api.CreateTaskRequest{ContainerID: id}); err != nil {
				t.Fatal(err)
			}
		}
		for filter, want := range map[string]int{"": 2, "id==a": 1, "namespace==ns": 2, "id==none": 0} {
			got, err := w.TaskService().Metrics(ctx, &api.MetricsRequest{Filters: strings.Fields(filter)})
			if err != nil || len(got.GetMetrics()) != want {
				t.Errorf("filter %q: %v, %v", filter, got, err)
			}
		}
		got, err := w.TaskService().Metrics(ctx, &api.MetricsRequest{Filters: []string{"id==a"}})
		if err != nil {
			t.Fatal(err)
		}
		data, err := typeurl.UnmarshalAny(got.GetMetrics()[0].GetData())
		if err != nil {
			t.Fatal(err)
		}
		switch m := data.(type) {
		case *v1.Metrics:
			if unified || m.GetMemory().GetUsage().GetUsage() != 11 || m.GetMemory().GetTotalInactiveFile() != 9 || m.GetCPU().GetUsage().GetTotal() != 7 ||
				m.GetBlkio().GetIoServiceBytesRecursive()[0].GetValue() != 4 || m.GetHugetlb()[0].GetUsage() != 3 || m.GetMemoryOomControl().GetOomKill() != 1 {
				t.Errorf("version 1: %v", m)
			}
		case *v2.Metrics:
			if !unified || m.GetMemory().GetUsageLimit() != 12 || m.GetMemory().GetInactiveFile() != 10 || m.GetCPU().GetUsageUsec() != 8 ||
				m.GetIo().GetUsage()[0].GetRbytes() != 5 || m.GetMemoryEvents().GetOomKill() != 1 || m.GetPids().GetCurrent() != 2 {
				t.Errorf("version 2: %v", m)
			}
		default:
			t.Errorf("got %T", data)
		}
		w.set.report = &spec.Opaque{Type: "its.own", Value: []byte("words")}
		got, err = w.TaskService().Metrics(ctx, &api.MetricsRequest{Filters: []string{"id==a"}})
		if err != nil || string(got.GetMetrics()[0].GetData().GetValue()) != "words" {
			t.Errorf("what a runtime measured itself: %v, %v", got, err)
		}
	}
}

func TestCheckpoint(t *testing.T) {
	w, ctx := open(t, false), in(t, "ns")
	if _, err := w.ContainerService().Create(ctx, record("c")); err != nil {
		t.Fatal(err)
	}
	service := w.TaskService()
	if _, err := service.Create(ctx, &api.CreateTaskRequest{ContainerID: "c"}); err != nil {
		t.Fatal(err)
	}
	packed, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{Exit: true})
	if err != nil {
		t.Fatal(err)
	}
	got, err := service.Checkpoint(ctx, &api.CheckpointTaskRequest{ContainerID: "c", Options: packed})
	if err != nil {
		t.Fatal(err)
	}
	if !w.set.saw("checkpoint ns/c true") || len(got.GetDescriptors()) != 2 || got.GetDescriptors()[0].GetMediaType() != images.MediaTypeContainerd1Checkpoint {
		t.Fatalf("%v; %v", w.set.seen, got)
	}
	kept := &anypb.Any{}
	if err := proto.Unmarshal(w.blobs.data[got.GetDescriptors()[1].GetDigest()], kept); err != nil || string(kept.GetValue()) != `{"ociVersion":"1.2.0"}` {
		t.Errorf("the spec: %v, %v", kept, err)
	}
	w.nothingLeft(t)

	// A task goes on from it, in a folder that stays until it is deleted.
	w.set.end("ns", "c", "", 0)
	if _, err := service.Delete(ctx, &api.DeleteTaskRequest{ContainerID: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := service.Create(ctx, &api.CreateTaskRequest{ContainerID: "c", Checkpoint: got.GetDescriptors()[0]}); err != nil {
		t.Fatal(err)
	}
	req, _ := w.set.last.(container.TaskRequest)
	if data, err := os.ReadFile(filepath.Join(req.Restore, "pages-1.img")); err != nil || string(data) != "memory of c" {
		t.Errorf("%q, %v", data, err)
	}
	w.set.end("ns", "c", "", 0)
	if _, err := service.Delete(ctx, &api.DeleteTaskRequest{ContainerID: "c"}); err != nil {
		t.Fatal(err)
	}
	w.nothingLeft(t)

	// What is none.
	for name, from := range map[string]*types.Descriptor{
		"another type": {MediaType: "text/plain", Digest: got.GetDescriptors()[0].GetDigest()},
		"no tar":       {MediaType: images.MediaTypeContainerd1Checkpoint, Digest: got.GetDescriptors()[1].GetDigest()},
	} {
		if _, err := service.Create(ctx, &api.CreateTaskRequest{ContainerID: "c", Checkpoint: from}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := service.Checkpoint(ctx, &api.CheckpointTaskRequest{ContainerID: "c", Options: &anypb.Any{TypeUrl: "other.Options"}}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("options of another runtime: %v", err)
	}
	w.nothingLeft(t)
}

func TestSandboxes(t *testing.T) {
	w, ctx := open(t, false), in(t, "ns")
	one, err := w.NewSandbox(ctx, "pod", client.WithSandboxRuntime(container.RuntimeV2, nil), client.WithSandboxSpec(&oci.Spec{Version: "1.2.0"}), client.WithSandboxLabels(map[string]string{"k": "v"}))
	if err != nil {
		t.Fatal(err)
	}
	if labels, err := one.Labels(ctx); err != nil || labels["k"] != "v" {
		t.Errorf("%v, %v", labels, err)
	}
	if err := one.Start(ctx); err != nil {
		t.Fatal(err)
	}
	controller := w.SandboxController("shim")
	if status, err := controller.Status(ctx, "pod", false); err != nil || status.State != "SANDBOX_READY" {
		t.Errorf("%+v, %v", status, err)
	}
	exits, err := one.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := w.SandboxStore().List(ctx, "labels.k==v"); err != nil || len(list) != 1 || list[0].Sandboxer != "shim" {
		t.Errorf("%+v, %v", list, err)
	}
	kept, err := w.SandboxStore().Get(ctx, "pod")
	if err != nil {
		t.Fatal(err)
	}
	kept.Labels = map[string]string{"k": "w"}
	if kept, err = w.SandboxStore().Update(ctx, kept, "labels.k"); err != nil || kept.Labels["k"] != "w" {
		t.Errorf("%+v, %v", kept, err)
	}
	if _, err = w.SandboxStore().Update(ctx, kept, "sandboxer"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("another controller: %v", err)
	}
	if err := one.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if exit := <-exits; exit.Error() != nil {
		t.Errorf("ended: %v", exit.Error())
	}
	if err := one.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.LoadSandbox(ctx, "pod"); !errdefs.IsNotFound(err) {
		t.Errorf("after all: %v", err)
	}
	if _, err := w.NewSandbox(ctx, "vm", client.WithSandboxRuntime("io.containerd.kata.v2", nil)); !errdefs.IsNotImplemented(err) {
		t.Errorf("a machine of its own: %v", err)
	}
}

func TestToldWhatHappens(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	x := events.New(quiet)
	told := tasks.Told{Events: x}
	stream, err := x.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]string{"namespace": "ns", "container": "c", "given": "true", "pid": "7", "exitCode": "9", "exitedAt": "2026-01-02T03:04:05.6Z", "execID": "e"}
	native := map[string]string{"namespace": "default", "container": "n", "image": "img", "pid": "8"}
	at := time.Now()
	for _, e := range []spec.Event{
		{Type: "image", Action: "pull"},
		{Type: "container", Action: "create", Attributes: given}, // told by the service
		{Type: "container", Action: "task_create", Attributes: given},
		{Type: "container", Action: "start", Attributes: given},
		{Type: "container", Action: "exec_create: true", Attributes: given},
		{Type: "container", Action: "exec_start: true", Attributes: given},
		{Type: "container", Action: "exec_die", Attributes: given},
		{Type: "container", Action: "pause", Attributes: given},
		{Type: "container", Action: "unpause", Attributes: given},
		{Type: "container", Action: "oom", Attributes: given},
		{Type: "container", Action: "checkpoint", Attributes: given},
		{Type: "container", Action: "die", Attributes: given},
		{Type: "container", Action: "task_delete", Attributes: given},
		{Type: "container", Action: "destroy", Attributes: given},
		{Type: "container", Action: "create", Attributes: native},
		{Type: "container", Action: "start", Attributes: native},
		{Type: "container", Action: "health_status: healthy", Attributes: native},
		{Type: "container", Action: "die", Attributes: native},
		{Type: "container", Action: "destroy", Attributes: native},
	} {
		e.Time = at
		told.Tell(t.Context(), e)
	}
	want := strings.Fields(`ns/tasks/create ns/tasks/start ns/tasks/exec-added ns/tasks/exec-started ns/tasks/exit ns/tasks/paused ns/tasks/resumed
		ns/tasks/oom ns/tasks/checkpointed ns/tasks/exit ns/tasks/delete ns/containers/delete
		default/containers/create default/tasks/create default/tasks/start default/tasks/exit default/containers/delete`)
	for e, err := range stream {
		if err != nil {
			t.Fatal(err)
		}
		if got := e.GetNamespace() + e.GetTopic(); got != want[0] {
			t.Fatalf("told %s, want %s", got, want[0])
		}
		if !e.GetTimestamp().AsTime().Equal(at) {
			t.Errorf("%s is of %v", want[0], e.GetTimestamp().AsTime())
		}
		message, err := typeurl.UnmarshalAny(e.GetEvent())
		if err != nil {
			t.Fatal(err)
		}
		if exit, ok := message.(interface{ GetExitStatus() uint32 }); ok && e.GetNamespace() == "ns" && exit.GetExitStatus() != 9 {
			t.Errorf("%s: %v", want[0], message)
		}
		if want = want[1:]; len(want) == 0 {
			break
		}
	}
}

func TestOwners(t *testing.T) {
	w := open(t, false)
	if _, err := w.ContainerService().Create(in(t, "ns"), record("c")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for item := range itemsOf(t, tasks.Owner{Set: w.set}) {
		got = append(got, item.Namespace+" "+item.Kind+" "+item.ID+" "+item.Refs[0].Kind+" "+item.Refs[0].ID)
	}
	if want := "ns containers c snapshots/overlayfs key-c"; len(got) != 1 || got[0] != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStatuses(t *testing.T) {
	w, ctx := open(t, false), in(t, "ns")
	if _, err := w.ContainerService().Create(ctx, record("c")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.TaskService().Create(ctx, &api.CreateTaskRequest{ContainerID: "c"}); err != nil {
		t.Fatal(err)
	}
	for status, want := range map[container.TaskStatus]task.Status{
		container.TaskCreated: task.Status_CREATED, container.TaskRunning: task.Status_RUNNING, container.TaskStopped: task.Status_STOPPED,
		container.TaskPaused: task.Status_PAUSED, container.TaskPausing: task.Status_PAUSING, "odd": task.Status_UNKNOWN,
	} {
		if err := w.set.set("ns", "c", status); err != nil {
			t.Fatal(err)
		}
		got, err := w.TaskService().List(ctx, &api.ListTasksRequest{})
		if err != nil || len(got.GetTasks()) != 1 || got.GetTasks()[0].GetStatus() != want || got.GetTasks()[0].GetID() != "c" {
			t.Errorf("%s: %v, %v", status, got, err)
		}
	}
}
