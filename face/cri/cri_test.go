package cri_test

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
)

func (w *world) want(code codes.Code, err error, doing string) {
	w.Helper()
	if status.Code(err) != code {
		w.Errorf("%s: got %v, want %s", doing, err, code)
	}
}

func TestLifecycle(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	pod, ids := w.run("a", "m", "n")
	if again, _ := w.run("a"); again != pod {
		t.Error("the same config made another pod")
	}
	_, err := w.client.StartContainer(ctx, &api.StartContainerRequest{ContainerId: ids[0]})
	w.must(err)
	all, err := w.client.PodSandboxStatus(ctx, &api.PodSandboxStatusRequest{PodSandboxId: pod[:6]})
	w.must(err)
	is := all.GetStatus()
	if is.GetId() != pod || is.GetMetadata().GetUid() != "a" || is.GetState() != api.PodSandboxState_SANDBOX_READY || is.GetCreatedAt() != 100e9+7 ||
		is.GetNetwork().GetIp() != "10.0.0.2" || is.GetNetwork().GetAdditionalIps()[0].GetIp() != "fd00::2" || is.GetLinux().GetNamespaces().GetOptions().GetPid() != api.NamespaceMode_CONTAINER {
		t.Errorf("pod: %v", is)
	}
	if len(all.GetContainersStatuses()) != 2 || all.GetTimestamp() == 0 || all.GetInfo() != nil {
		t.Errorf("its containers: %v at %d, %v", all.GetContainersStatuses(), all.GetTimestamp(), all.GetInfo())
	}
	c := w.status(ids[0])
	if c.GetState() != api.ContainerState_CONTAINER_RUNNING || c.GetStartedAt() != 102e9 || c.GetFinishedAt() != 0 || c.GetImageId() != "sha256:1" || c.GetImageRef() != "busybox@sha256:2" ||
		c.GetImage().GetImage() != "docker.io/library/busybox:latest" || c.GetLogPath() != "/logs/m.log" || c.GetUser().GetLinux().GetUid() != 1 || c.GetStopSignal() != api.Signal_SIGNAL_SIGTERM {
		t.Errorf("container: %v", c)
	}
	if got := w.rooms.Containers()[0].Config.Security.Namespaces.PID; got != "container" {
		t.Errorf("a container that says nothing of processes sees those of %s", got)
	}
	_, err = w.client.UpdateContainerResources(ctx, &api.UpdateContainerResourcesRequest{ContainerId: ids[0], Linux: &api.LinuxContainerResources{CpuShares: 5}, Annotations: map[string]string{"why": "more"}})
	w.must(err)
	if got := w.status(ids[0]).GetResources().GetLinux().GetCpuShares(); got != 5 {
		t.Error("shares after an update:", got)
	}
	_, err = w.client.UpdatePodSandboxResources(ctx, &api.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &api.LinuxContainerResources{CpuQuota: 6}})
	w.must(err)
	_, err = w.client.ReopenContainerLog(ctx, &api.ReopenContainerLogRequest{ContainerId: ids[0]})
	w.must(err)
	_, err = w.client.CheckpointContainer(ctx, &api.CheckpointContainerRequest{ContainerId: ids[0], Location: "/c.tar", Timeout: 7})
	w.must(err)
	for _, seconds := range []int64{3, -1, 1 << 62} {
		_, err = w.client.StopContainer(ctx, &api.StopContainerRequest{ContainerId: ids[0], Timeout: seconds})
		w.must(err)
	}
	c = w.status(ids[0])
	if c.GetState() != api.ContainerState_CONTAINER_EXITED || c.GetFinishedAt() != 103e9 || c.GetExitCode() != 137 || c.GetReason() != "OOMKilled" {
		t.Errorf("after its end: %v", c)
	}
	if want := []string{"update with more", "update pod", "checkpoint to /c.tar within 7s", "stop after 3s", "stop after 0s", "stop after 876000h0m0s"}; !slices.Equal(w.rooms.calls, want) {
		t.Errorf("calls %q, want %q", w.rooms.calls, want)
	}
}

func (w *world) status(id string) *api.ContainerStatus {
	w.Helper()
	answer, err := w.client.ContainerStatus(w.Context(), &api.ContainerStatusRequest{ContainerId: id})
	w.must(err)
	return answer.GetStatus()
}

// What is not there needs neither be stopped nor removed; all else says so.
func TestWhatIsNotThere(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	_, err := w.client.StopPodSandbox(ctx, &api.StopPodSandboxRequest{PodSandboxId: "x"})
	w.must(err)
	_, err = w.client.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{PodSandboxId: "x"})
	w.must(err)
	_, err = w.client.StopContainer(ctx, &api.StopContainerRequest{ContainerId: "x"})
	w.must(err)
	_, err = w.client.RemoveContainer(ctx, &api.RemoveContainerRequest{ContainerId: "x"})
	w.must(err)
	for doing, err := range map[string]error{
		"PodSandboxStatus":          second(w.client.PodSandboxStatus(ctx, &api.PodSandboxStatusRequest{PodSandboxId: "x"})),
		"UpdatePodSandboxResources": second(w.client.UpdatePodSandboxResources(ctx, &api.UpdatePodSandboxResourcesRequest{PodSandboxId: "x"})),
		"CreateContainer": second(w.client.CreateContainer(ctx, &api.CreateContainerRequest{PodSandboxId: "x", Config: &api.ContainerConfig{
			Metadata: &api.ContainerMetadata{Name: "a"}, Image: &api.ImageSpec{Image: "i"},
		}})),
		"StartContainer":           second(w.client.StartContainer(ctx, &api.StartContainerRequest{ContainerId: "x"})),
		"ContainerStatus":          second(w.client.ContainerStatus(ctx, &api.ContainerStatusRequest{ContainerId: "x"})),
		"UpdateContainerResources": second(w.client.UpdateContainerResources(ctx, &api.UpdateContainerResourcesRequest{ContainerId: "x"})),
		"ReopenContainerLog":       second(w.client.ReopenContainerLog(ctx, &api.ReopenContainerLogRequest{ContainerId: "x"})),
		"CheckpointContainer":      second(w.client.CheckpointContainer(ctx, &api.CheckpointContainerRequest{ContainerId: "x", Location: "/x"})),
		"CheckpointPod":            second(w.client.CheckpointPod(ctx, &api.CheckpointPodRequest{PodSandboxId: "x", OutputPath: "/x"})),
	} {
		w.want(codes.NotFound, err, doing)
	}
	_, err = w.client.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Config: &api.PodSandboxConfig{Metadata: &api.PodSandboxMetadata{Name: "broken", Namespace: "n", Uid: "u"}}})
	w.want(codes.DeadlineExceeded, err, "a plugin that hangs")
	_, err = w.client.CheckpointContainer(ctx, &api.CheckpointContainerRequest{ContainerId: "x", Location: "here"})
	w.want(codes.InvalidArgument, err, "a checkpoint somewhere")
	_, err = w.client.CheckpointPod(ctx, &api.CheckpointPodRequest{PodSandboxId: "x", OutputPath: "here"})
	w.want(codes.InvalidArgument, err, "a pod's checkpoint somewhere")
}

// A pod is written to a folder and made of it again, by name.
func TestCheckpointPod(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	id, ids := w.run("a", "m", "n")
	options := map[string]string{"leave": "nothing"}
	_, err := w.client.CheckpointPod(ctx, &api.CheckpointPodRequest{PodSandboxId: id, OutputPath: "/cp", ContainerIds: ids})
	w.must(err)
	_, err = w.client.CheckpointPod(ctx, &api.CheckpointPodRequest{PodSandboxId: id, OutputPath: "/cp", ContainerIds: ids, Options: options})
	w.want(codes.InvalidArgument, err, "an option that nobody knows")

	container := func(name string) *api.ContainerConfig {
		return &api.ContainerConfig{Metadata: &api.ContainerMetadata{Name: name}, Image: &api.ImageSpec{Image: "busybox"}}
	}
	request := func(change func(*api.RestorePodRequest)) *api.RestorePodRequest {
		r := &api.RestorePodRequest{
			CheckpointPath: "/cp", Config: &api.PodSandboxConfig{Metadata: &api.PodSandboxMetadata{Name: "b", Namespace: "n", Uid: "u"}},
			ContainerConfigs: []*api.ContainerConfig{container("n"), container("m")},
		}
		change(r)
		return r
	}
	answer, err := w.client.RestorePod(ctx, request(func(*api.RestorePodRequest) {}))
	w.must(err)
	for i, name := range []string{"n", "m"} {
		c := answer.GetRestoredContainers()[i]
		if is := w.status(c.GetContainerId()); c.GetName() != name || is.GetMetadata().GetName() != name || is.GetState() != api.ContainerState_CONTAINER_CREATED {
			t.Errorf("%s is %v", name, is)
		}
	}
	for doing, change := range map[string]func(*api.RestorePodRequest){
		"an option that nobody knows": func(r *api.RestorePodRequest) { r.Options = options },
		"a folder somewhere":          func(r *api.RestorePodRequest) { r.CheckpointPath = "cp" },
		"no containers":               func(r *api.RestorePodRequest) { r.ContainerConfigs = nil },
		"no pod":                      func(r *api.RestorePodRequest) { r.Config = nil },
	} {
		_, err := w.client.RestorePod(ctx, request(change))
		w.want(codes.InvalidArgument, err, doing)
	}
	if want := []string{"checkpoint 2 of pod to /cp", "restore pod from /cp"}; !slices.Equal(w.rooms.calls, want) {
		t.Errorf("calls %q", w.rooms.calls)
	}
}

func second[T any](_ T, err error) error { return err }

func TestFilters(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	a, _ := w.run("a", "m", "n")
	b, ids := w.run("b", "o")
	_, err := w.client.StopPodSandbox(ctx, &api.StopPodSandboxRequest{PodSandboxId: b})
	w.must(err)
	_, err = w.client.StartContainer(ctx, &api.StartContainerRequest{ContainerId: ids[0]})
	w.must(err)
	for _, tt := range []struct {
		filter *api.PodSandboxFilter
		want   string
	}{
		{nil, "ab"},
		{&api.PodSandboxFilter{Id: a[:8]}, "a"},
		{&api.PodSandboxFilter{Id: "none"}, ""},
		{&api.PodSandboxFilter{State: &api.PodSandboxStateValue{State: api.PodSandboxState_SANDBOX_NOTREADY}}, "b"},
		{&api.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, "ab"},
		{&api.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "uid": "b"}}, "b"},
		{&api.PodSandboxFilter{LabelSelector: map[string]string{"tier": ""}}, ""},
		{&api.PodSandboxFilter{Id: a, State: &api.PodSandboxStateValue{State: api.PodSandboxState_SANDBOX_NOTREADY}}, ""},
	} {
		listed, err := w.client.ListPodSandbox(ctx, &api.ListPodSandboxRequest{Filter: tt.filter})
		w.must(err)
		var got []string
		for _, p := range listed.GetItems() {
			got = append(got, p.GetMetadata().GetUid())
		}
		parts, err := w.client.StreamPodSandboxes(ctx, &api.StreamPodSandboxesRequest{Filter: tt.filter})
		w.must(err)
		var streamed []*api.PodSandbox
		for _, part := range drain(t, parts) {
			streamed = append(streamed, part.GetPodSandboxes()...)
		}
		if strings.Join(got, "") != tt.want || len(streamed) != len(got) {
			t.Errorf("%v: %v, and %d in parts; want %s", tt.filter, got, len(streamed), tt.want)
		}
	}
	for _, tt := range []struct {
		filter *api.ContainerFilter
		want   string
	}{
		{nil, "mno"},
		{&api.ContainerFilter{PodSandboxId: a[:8]}, "mn"},
		{&api.ContainerFilter{PodSandboxId: "none"}, ""},
		{&api.ContainerFilter{Id: ids[0][:12]}, "o"},
		{&api.ContainerFilter{Id: ids[0], PodSandboxId: a}, ""},
		{&api.ContainerFilter{State: &api.ContainerStateValue{State: api.ContainerState_CONTAINER_RUNNING}}, "o"},
		{&api.ContainerFilter{LabelSelector: map[string]string{"name": "n"}}, "n"},
	} {
		listed, err := w.client.ListContainers(ctx, &api.ListContainersRequest{Filter: tt.filter})
		w.must(err)
		var got string
		for _, c := range listed.GetContainers() {
			if got += c.GetMetadata().GetName(); c.GetImageId() != "sha256:1" || c.GetPodSandboxId() == "" || c.GetCreatedAt() == 0 {
				t.Errorf("listed: %v", c)
			}
		}
		if got != tt.want {
			t.Errorf("%v: %q, want %q", tt.filter, got, tt.want)
		}
	}
	// An ambiguous beginning names nothing.
	w.run("ab")
	if listed, err := w.client.ListPodSandbox(ctx, &api.ListPodSandboxRequest{Filter: &api.PodSandboxFilter{Id: "a"}}); err != nil || len(listed.GetItems()) != 0 {
		t.Error(listed, err)
	}
}

// Streams give each item once, in parts that any client takes.
func TestStreams(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	for i := range 9 {
		w.run(string(rune('a' + i)))
	}
	pods := w.rooms.Pods()
	for i := range pods {
		pods[i].Config.Annotations = map[string]string{"big": strings.Repeat("x", 400<<10)}
	}
	w.rooms.pods = pods
	s, err := w.client.StreamPodSandboxes(ctx, &api.StreamPodSandboxesRequest{})
	w.must(err)
	seen := map[string]bool{}
	for parts := 0; ; parts++ {
		part, err := s.Recv()
		if errors.Is(err, io.EOF) {
			if parts < 4 || len(seen) != 9 {
				t.Errorf("%d pods in %d parts", len(seen), parts)
			}
			break
		}
		w.must(err)
		if len(part.GetPodSandboxes()) == 0 || proto.Size(part) > 2<<20 {
			t.Errorf("a part of %d items and %d bytes", len(part.GetPodSandboxes()), proto.Size(part))
		}
		for _, p := range part.GetPodSandboxes() {
			if seen[p.GetId()] {
				t.Error("twice:", p.GetId())
			}
			seen[p.GetId()] = true
		}
	}
	stats, err := w.client.StreamPodSandboxStats(ctx, &api.StreamPodSandboxStatsRequest{})
	w.must(err)
	if all := drain(t, stats); len(all) < 2 {
		t.Error("statistics in", len(all), "parts")
	}
	metrics, err := w.client.StreamPodSandboxMetrics(ctx, &api.StreamPodSandboxMetricsRequest{})
	w.must(err)
	if all := drain(t, metrics); len(all) != 1 || len(all[0].GetPodSandboxMetrics()) != 1 {
		t.Error("metrics:", all)
	}
	none, err := w.client.StreamContainerStats(ctx, &api.StreamContainerStatsRequest{})
	w.must(err)
	if all := drain(t, none); len(all) != 0 {
		t.Error("an empty list came as", all)
	}
	containers, err := w.client.StreamContainers(ctx, &api.StreamContainersRequest{Filter: &api.ContainerFilter{Id: "none"}})
	w.must(err)
	if all := drain(t, containers); len(all) != 0 {
		t.Error("an empty list came as", all)
	}
}

func drain[T any](t *testing.T, s grpc.ServerStreamingClient[T]) (all []*T) {
	t.Helper()
	for {
		one, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
}

func TestStatus(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	v, err := w.client.Version(ctx, &api.VersionRequest{})
	w.must(err)
	if v.GetRuntimeName() != "berth" || v.GetRuntimeVersion() != "1.2.3" || v.GetRuntimeApiVersion() != "v1" || v.GetVersion() != "0.1.0" {
		t.Error(v)
	}
	w.rooms.networkErr = errs.New(errs.Unavailable, "no configuration in /etc/cni/net.d")
	is, err := w.client.Status(ctx, &api.StatusRequest{})
	w.must(err)
	ready, network := is.GetStatus().GetConditions()[0], is.GetStatus().GetConditions()[1]
	if ready.GetType() != "RuntimeReady" || !ready.GetStatus() || network.GetType() != "NetworkReady" || network.GetStatus() || network.GetReason() == "" || network.GetMessage() != "no configuration in /etc/cni/net.d" {
		t.Error(is.GetStatus())
	}
	handlers, features := is.GetRuntimeHandlers(), is.GetFeatures()
	if len(handlers) != 2 || !handlers[0].GetFeatures().GetRecursiveReadOnlyMounts() || handlers[0].GetFeatures().GetUserNamespaces() || !handlers[1].GetFeatures().GetUserNamespaces() {
		t.Error(handlers)
	}
	if !features.GetSupplementalGroupsPolicy() || !features.GetMountOptions() || !features.GetUserNamespacesHostNetwork() || is.GetInfo() != nil {
		t.Error(features, is.GetInfo())
	}
	w.rooms.networkErr = nil
	is, err = w.client.Status(ctx, &api.StatusRequest{Verbose: true})
	w.must(err)
	if !is.GetStatus().GetConditions()[1].GetStatus() || is.GetInfo()["config"] != `{"root":"/var/lib/berth"}` {
		t.Error(is)
	}
	config, err := w.client.RuntimeConfig(ctx, &api.RuntimeConfigRequest{})
	if err != nil || config.GetLinux().GetCgroupDriver() != api.CgroupDriver_CGROUPFS {
		t.Error(config, err)
	}
	for _, cidr := range []string{"10.1.0.0/16", ""} {
		_, err = w.client.UpdateRuntimeConfig(ctx, &api.UpdateRuntimeConfigRequest{RuntimeConfig: &api.RuntimeConfig{NetworkConfig: &api.NetworkConfig{PodCidr: cidr}}})
		w.must(err)
	}
	if w.rooms.cidr != "10.1.0.0/16" {
		t.Error("CIDR", w.rooms.cidr)
	}
}

// People's scripts look for a process and for the path of the network.
func TestWords(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	pod, ids := w.run("a", "m")
	_, err := w.client.StartContainer(ctx, &api.StartContainerRequest{ContainerId: ids[0]})
	w.must(err)
	_, err = w.client.UpdatePodSandboxResources(ctx, &api.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: &api.LinuxContainerResources{CpuQuota: 6}})
	w.must(err)
	status, err := w.client.PodSandboxStatus(ctx, &api.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	w.must(err)
	var words struct {
		Pid         int
		Config      struct{ Metadata struct{ Name string } }
		Overhead    *api.ContainerResources
		RuntimeSpec struct {
			Linux struct{ Namespaces []struct{ Type, Path string } }
		}
	}
	w.must(json.Unmarshal([]byte(status.GetInfo()["info"]), &words))
	if words.Pid != 4242 || words.Config.Metadata.Name != "pod-a" || words.Overhead.GetLinux().GetCpuQuota() != 6 || len(words.RuntimeSpec.Linux.Namespaces) != 1 || words.RuntimeSpec.Linux.Namespaces[0].Path != "/netns/a" {
		t.Errorf("%+v of %s", words, status.GetInfo()["info"])
	}
	c, err := w.client.ContainerStatus(ctx, &api.ContainerStatusRequest{ContainerId: ids[0], Verbose: true})
	w.must(err)
	var of struct {
		SandboxID   string
		Pid         int
		Config      struct{ Metadata struct{ Name string } }
		RuntimeSpec struct{ Hostname string }
	}
	w.must(json.Unmarshal([]byte(c.GetInfo()["info"]), &of))
	if of.Pid != 4242 || of.SandboxID != pod || of.Config.Metadata.Name != "m" || of.RuntimeSpec.Hostname != "of mmmm" {
		t.Errorf("%+v of %s", of, c.GetInfo()["info"])
	}
}
