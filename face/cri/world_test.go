package cri_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/face/cri"
	"berth/node/event"
	"berth/spec"
)

// rooms are pods and containers that are only said to be.
type rooms struct {
	bus *event.Bus

	mu         sync.Mutex
	pods       []spec.Pod
	containers []spec.PodContainer
	calls      []string
	networkErr error
	cidr       string
}

func (r *rooms) note(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
}

func (r *rooms) RunPod(_ context.Context, c spec.PodConfig) (string, error) {
	if c.Name == "broken" {
		return "", errs.New(errs.Timeout, "the network plugin hangs")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		if p.Config.UID == c.UID && p.State == spec.PodReady {
			return p.ID, nil
		}
	}
	p := spec.Pod{ID: strings.Repeat(c.UID, 64)[:64], Config: c, State: spec.PodReady, Created: time.Unix(100, 7), IPs: []string{"10.0.0.2", "fd00::2"}, NetNS: "/netns/" + c.UID, Runtime: "runc"}
	r.pods = append(r.pods, p)
	r.tell("pod", "create", p.ID, nil)
	r.tell("pod", "start", p.ID, nil)
	return p.ID, nil
}

// tell publishes as the rooms do: after what it tells of.
func (r *rooms) tell(kind, action, id string, attrs map[string]string) {
	r.mu.Unlock()
	defer r.mu.Lock()
	r.bus.Publish(kind, action, id, attrs)
}

func (r *rooms) StopPod(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.pods {
		if r.pods[i].ID == id {
			r.pods[i].State = spec.PodNotReady
			r.tell("pod", "stop", id, nil)
			return nil
		}
	}
	return errs.New(errs.NotFound, "no pod %s", id)
}

func (r *rooms) RemovePod(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range r.pods {
		if p.ID == id {
			r.pods = slices.Delete(r.pods, i, i+1)
			r.tell("pod", "remove", id, map[string]string{"name": p.Config.Name, "namespace": p.Config.Namespace, "uid": p.Config.UID})
			return nil
		}
	}
	return errs.New(errs.NotFound, "no pod %s", id)
}

func (r *rooms) Pod(id string) (spec.Pod, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []spec.Pod
	for _, p := range r.pods {
		if strings.HasPrefix(p.ID, id) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return spec.Pod{}, errs.New(errs.NotFound, "no pod %s", id)
	case 1:
		return found[0], nil
	}
	return spec.Pod{}, errs.New(errs.Conflict, "%s is the beginning of several", id)
}

func (r *rooms) Pods() []spec.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pods)
}

func (r *rooms) UpdatePod(_ context.Context, id string, overhead, resources *spec.PodResources) error {
	r.note("update pod")
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.pods {
		if r.pods[i].ID == id {
			r.pods[i].Config.Overhead, r.pods[i].Config.Resources = overhead, resources
			return nil
		}
	}
	return errs.New(errs.NotFound, "no pod %s", id)
}

func (r *rooms) CreateContainer(_ context.Context, pod string, c spec.PodContainerConfig) (string, error) {
	p, err := r.Pod(pod)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	id := strings.Repeat(c.Name, 64)[:64]
	r.containers = append(r.containers, spec.PodContainer{
		ID: id, Pod: p.ID, Config: c, ImageID: "sha256:1", ImageRef: "busybox@sha256:2", State: spec.Created, Created: time.Unix(101, 0),
		Mounts: c.Mounts, Resources: c.Resources, LogPath: filepath.Join(p.Config.LogDir, c.LogPath), User: &spec.PodUser{UID: 1, GID: 2, Groups: []int64{3}}, StopSignal: c.StopSignal,
	})
	r.tell("container", "create", id, map[string]string{"pod": p.ID})
	return id, nil
}

func (r *rooms) change(id, action string, change func(*spec.PodContainer)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.containers {
		if c := &r.containers[i]; c.ID == id {
			change(c)
			if action != "" {
				r.tell("container", action, id, map[string]string{"pod": c.Pod})
			}
			return nil
		}
	}
	return errs.New(errs.NotFound, "no container %s", id)
}

func (r *rooms) StartContainer(_ context.Context, id string) error {
	return r.change(id, "start", func(c *spec.PodContainer) { c.State, c.Started, c.Pid = spec.Running, time.Unix(102, 0), 4242 })
}

func (r *rooms) StopContainer(_ context.Context, id string, timeout time.Duration) error {
	r.note("stop after " + timeout.String())
	return r.change(id, "die", func(c *spec.PodContainer) {
		c.State, c.Finished, c.ExitCode, c.Reason, c.Pid = spec.Stopped, time.Unix(103, 0), 137, "OOMKilled", 0
	})
}

func (r *rooms) RemoveContainer(_ context.Context, id string) error {
	c, err := r.Container(id)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers = slices.DeleteFunc(r.containers, func(c spec.PodContainer) bool { return c.ID == id })
	r.tell("container", "destroy", id, map[string]string{"pod": c.Pod})
	return nil
}

func (r *rooms) UpdateContainer(_ context.Context, id string, resources spec.PodResources, annotations map[string]string) error {
	r.note("update with " + annotations["why"])
	return r.change(id, "", func(c *spec.PodContainer) { c.Resources = resources })
}

func (r *rooms) ReopenLog(_ context.Context, id string) error {
	return r.change(id, "", func(*spec.PodContainer) {})
}

func (r *rooms) Checkpoint(ctx context.Context, id, path string) error {
	at, bounded := ctx.Deadline()
	if bounded {
		path += " within " + time.Until(at).Round(time.Second).String()
	}
	r.note("checkpoint to " + path)
	return r.change(id, "", func(*spec.PodContainer) {})
}

func (r *rooms) CheckpointPod(_ context.Context, id, dir string, containers []string) error {
	if _, err := r.Pod(id); err != nil {
		return err
	}
	r.note(fmt.Sprintf("checkpoint %d of pod to %s", len(containers), dir))
	return nil
}

func (r *rooms) RestorePod(ctx context.Context, dir string, config spec.PodConfig, containers []spec.PodContainerConfig) (id string, ids []string, err error) {
	r.note("restore pod from " + dir)
	id, err = r.RunPod(ctx, config)
	for _, c := range containers {
		made, failed := r.CreateContainer(ctx, id, c)
		ids, err = append(ids, made), errors.Join(err, failed)
	}
	return id, ids, err
}

func (r *rooms) ContainerSpec(_ context.Context, id string) (*specs.Spec, error) {
	return &specs.Spec{Hostname: "of " + id[:4]}, nil
}

func (r *rooms) Container(id string) (spec.PodContainer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return spec.PodContainer{}, errs.New(errs.NotFound, "no container %s", id)
}

func (r *rooms) Containers() []spec.PodContainer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.containers)
}

func (r *rooms) ContainersOf(pod string) []spec.PodContainer {
	return slices.DeleteFunc(r.Containers(), func(c spec.PodContainer) bool { return c.Pod != pod })
}

func (r *rooms) NameOf(_, wanted string) string { return "docker.io/library/" + wanted + ":latest" }

func (r *rooms) PodsReady(context.Context) error { return r.networkErr }

func (r *rooms) SetPodCIDR(_ context.Context, cidr string) error {
	r.cidr = cidr
	return nil
}

func (r *rooms) Version() string { return "1.2.3" }

func (r *rooms) Handlers(context.Context) []cri.Handler {
	return []cri.Handler{{Name: "", RecursiveReadOnly: true}, {Name: "crun", UserNamespaces: true}}
}
func (r *rooms) Ready(context.Context) error { return nil }
func (r *rooms) Features() cri.Features      { return cri.Features{UserNamespacesOnHostNetwork: true} }
func (r *rooms) Config() map[string]any      { return map[string]any{"root": "/var/lib/berth"} }

// meter measures everything as nothing.
type meter struct {
	api.UnimplementedRuntimeServiceServer
	pods int
}

func (m meter) ListContainerStats(context.Context, *api.ListContainerStatsRequest) (*api.ListContainerStatsResponse, error) {
	return &api.ListContainerStatsResponse{Stats: make([]*api.ContainerStats, 0)}, nil
}

func (m meter) ListPodSandboxStats(context.Context, *api.ListPodSandboxStatsRequest) (*api.ListPodSandboxStatsResponse, error) {
	answer := &api.ListPodSandboxStatsResponse{}
	for range m.pods {
		answer.Stats = append(answer.Stats, &api.PodSandboxStats{Attributes: &api.PodSandboxAttributes{Labels: map[string]string{"big": strings.Repeat("x", 1<<18)}}})
	}
	return answer, nil
}

func (m meter) ListPodSandboxMetrics(context.Context, *api.ListPodSandboxMetricsRequest) (*api.ListPodSandboxMetricsResponse, error) {
	return &api.ListPodSandboxMetricsResponse{PodMetrics: []*api.PodSandboxMetrics{{PodSandboxId: "a"}}}, nil
}

func (m meter) PodSandboxMetrics(context.Context) ([]*api.PodSandboxMetrics, error) {
	return []*api.PodSandboxMetrics{{PodSandboxId: "a"}}, nil
}

// world is a server on a socket, a client of it, and what is behind it.
type world struct {
	*testing.T
	rooms  *rooms
	server *cri.Server
	client api.RuntimeServiceClient
	dial   func() api.RuntimeServiceClient
}

func newWorld(t *testing.T) *world {
	t.Helper()
	r := &rooms{bus: event.New(16)}
	w := &world{T: t, rooms: r, server: cri.New(cri.Config{
		Pods: r, Containers: r, Images: r, Network: r, Node: r, Meter: meter{pods: 9}, Streams: meter{}, Log: slog.New(slog.DiscardHandler),
	})}
	r.bus.Tap(w.server.Tell)
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	w.server.Register(server)
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	parts.Go(func() { _ = server.Serve(listener) })
	parts.Go(func() { _ = w.server.Run(ctx) })
	t.Cleanup(func() { cancel(); server.Stop(); parts.Wait() })
	w.dial = func() api.RuntimeServiceClient {
		conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return api.NewRuntimeServiceClient(conn)
	}
	w.client = w.dial()
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// run makes a pod of that uid with containers of those names, the labels of
// which say so.
func (w *world) run(uid string, containers ...string) (pod string, ids []string) {
	w.Helper()
	run, err := w.client.RunPodSandbox(w.Context(), &api.RunPodSandboxRequest{Config: &api.PodSandboxConfig{
		Metadata: &api.PodSandboxMetadata{Name: "pod-" + uid, Namespace: "shop", Uid: uid}, Labels: map[string]string{"uid": uid, "app": "web"}, LogDirectory: "/logs",
		Linux: &api.LinuxPodSandboxConfig{SecurityContext: &api.LinuxSandboxSecurityContext{NamespaceOptions: &api.NamespaceOption{Pid: api.NamespaceMode_CONTAINER}}},
	}})
	w.must(err)
	for _, name := range containers {
		created, err := w.client.CreateContainer(w.Context(), &api.CreateContainerRequest{PodSandboxId: run.GetPodSandboxId(), Config: &api.ContainerConfig{
			Metadata: &api.ContainerMetadata{Name: name}, Image: &api.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "busybox"},
			Labels: map[string]string{"name": name}, LogPath: name + ".log",
		}})
		w.must(err)
		ids = append(ids, created.GetContainerId())
	}
	return run.GetPodSandboxId(), ids
}
