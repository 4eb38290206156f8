package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // has it registered
	"google.golang.org/grpc/mem"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet asks a runtime for pods as kubelet does, and notes how long each
// step took, in milliseconds.
type kubelet struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	conn   *grpc.ClientConn
	cgroup string // that pods are in
	logs   string // folder
	made   int    // counts names

	mu    sync.Mutex
	times map[string][]float64
}

// workload is a pod with its one container.
type workload struct{ pod, container, log string }

const podImage = "docker.io/" + firstImage

func newKubelet(socket, cgroup, logs string) (*kubelet, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	return &kubelet{
		RuntimeServiceClient: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn), conn: conn,
		cgroup: cgroup, logs: logs, times: map[string][]float64{},
	}, nil
}

// step times one call.
func (k *kubelet) step(name string, call func() error) error {
	began := time.Now()
	if err := call(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	k.add(name, time.Since(began))
	return nil
}

func (k *kubelet) add(name string, took time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.times[name] = append(k.times[name], milliseconds(took))
}

// taken gives the samples away, each under its prefix and name.
func (k *kubelet) taken(prefix, column string, to results) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, samples := range k.times {
		to.add(prefix+name, column, samples...)
	}
	k.times = map[string][]float64{}
}

func (k *kubelet) name() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.made++
	return fmt.Sprintf("pod-%d-%d", os.Getpid(), k.made)
}

// up runs a pod with limits and a container that sleeps.
func (k *kubelet) up(ctx context.Context) (workload, error) {
	return k.runs(ctx, "/bin/sleep", "1000000")
}

// runs runs a pod with limits and a container of a command.
func (k *kubelet) runs(ctx context.Context, command ...string) (w workload, err error) {
	name := k.name()
	logs := filepath.Join(k.logs, name)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return w, err
	}
	apart := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	pod := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"},
		Hostname: name, LogDirectory: logs, Labels: map[string]string{"app": "bench"},
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: k.cgroup, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: apart}},
	}
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: podImage, UserSpecifiedImage: podImage},
		Command: command, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 256 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: apart},
		},
	}
	w.log = filepath.Join(logs, container.LogPath)
	began := time.Now()
	err = k.step("run", func() error {
		r, err := k.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
		w.pod = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return w, err
	}
	err = k.step("create", func() error {
		r, err := k.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: w.pod, Config: container, SandboxConfig: pod})
		w.container = r.GetContainerId()
		return err
	})
	if err != nil {
		return w, err
	}
	err = k.step("start", func() error {
		_, err := k.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: w.container})
		return err
	})
	if err == nil {
		k.add("up", time.Since(began))
	}
	return w, err
}

// down takes a pod away again, as far as it got.
func (k *kubelet) down(ctx context.Context, w workload) error {
	began := time.Now()
	steps := []struct {
		name string
		call func() error
	}{
		{"stop", func() error {
			_, err := k.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: w.container})
			return err
		}},
		{"remove", func() error {
			_, err := k.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: w.container})
			return err
		}},
		{"stop-pod", func() error {
			_, err := k.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: w.pod})
			return err
		}},
		{"remove-pod", func() error {
			_, err := k.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: w.pod})
			return err
		}},
	}
	if w.container == "" {
		steps = steps[2:]
	}
	for _, s := range steps {
		if err := k.step(s.name, s.call); err != nil {
			return err
		}
	}
	k.add("down", time.Since(began))
	return nil
}

// exec runs a command in a workload to its end.
func (k *kubelet) exec(ctx context.Context, w workload, argv ...string) error {
	return k.step("exec", func() error {
		r, err := k.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: w.container, Cmd: argv, Timeout: 20})
		if err == nil && r.GetExitCode() != 0 {
			err = fmt.Errorf("%v ended with %d: %s", argv, r.GetExitCode(), r.GetStderr())
		}
		return err
	})
}

// question is what kubelet asks again and again.
type question struct {
	name string
	ask  func() error
	// dear: it is counted anew, but not for who asks again within a second.
	dear bool
	// apart, if it is there, knows the parts of the last answer's time.
	apart *stopwatch
}

// stopwatch is gRPC's codec for one call after the other. It notes when an answer
// has come as a whole, and how long the client itself took to read it.
type stopwatch struct {
	encoding.CodecV2
	began      time.Time
	sent, read time.Duration
}

func (s *stopwatch) Marshal(request any) (mem.BufferSlice, error) {
	s.began = time.Now()
	return s.CodecV2.Marshal(request)
}

func (s *stopwatch) Unmarshal(data mem.BufferSlice, answer any) error {
	come := time.Now()
	err := s.CodecV2.Unmarshal(data, answer)
	s.sent, s.read = come.Sub(s.began), time.Since(come)
	return err
}

func (k *kubelet) asked(ctx context.Context, w workload) []question {
	apart := &stopwatch{CodecV2: encoding.GetCodecV2("proto")}
	return []question{
		{name: "list-pods", ask: func() error { _, err := k.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); return err }},
		{name: "list", ask: func() error { _, err := k.ListContainers(ctx, &cri.ListContainersRequest{}); return err }},
		{name: "pod-status", ask: func() error {
			_, err := k.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: w.pod})
			return err
		}},
		{name: "container-status", ask: func() error {
			_, err := k.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: w.container})
			return err
		}},
		{name: "node-status", ask: func() error { _, err := k.Status(ctx, &cri.StatusRequest{}); return err }},
		{name: "stats", dear: true, ask: func() error { _, err := k.ListContainerStats(ctx, &cri.ListContainerStatsRequest{}); return err }},
		{name: "pod-stats", dear: true, ask: func() error { _, err := k.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{}); return err }},
		{name: "metrics", dear: true, apart: apart, ask: func() error {
			_, err := k.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{}, grpc.ForceCodecV2(apart))
			return err
		}},
	}
}

// questions asks each question n times. Of what is dear the first answer
// counts, and one that follows within the second by itself.
func (k *kubelet) questions(ctx context.Context, w workload, n int) error {
	for range n {
		for _, q := range k.asked(ctx, w) {
			if q.dear {
				if err := pause(ctx, 1100*time.Millisecond); err != nil {
					return err
				}
			}
			if err := k.step(q.name, q.ask); err != nil {
				return err
			}
			if q.dear {
				if q.apart != nil {
					k.add(q.name+"-sent", q.apart.sent)
					k.add(q.name+"-read", q.apart.read)
				}
				if err := k.step(q.name+"-again", q.ask); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// calls asks everything once.
func (k *kubelet) calls(ctx context.Context, w workload) error {
	for _, q := range k.asked(ctx, w) {
		if err := k.step(q.name, q.ask); err != nil {
			return err
		}
	}
	return nil
}

// process is that of a container, by what its runtime tells those who ask
// for words.
func (k *kubelet) process(ctx context.Context, w workload) (int, error) {
	r, err := k.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: w.container, Verbose: true})
	if err != nil {
		return 0, err
	}
	var words struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &words); err != nil || words.Pid <= 0 {
		return 0, fmt.Errorf("no process of container %s is told: %w", w.container, err)
	}
	return words.Pid, nil
}

// running says whether n pods are ready and n containers run, and when those
// were started.
func (k *kubelet) running(ctx context.Context, n int) ([]string, error) {
	ready := &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}
	pods, err := k.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: ready})
	if err != nil {
		return nil, err
	}
	up := &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}
	containers, err := k.ListContainers(ctx, &cri.ListContainersRequest{Filter: up})
	if err != nil {
		return nil, err
	}
	if len(pods.GetItems()) != n || len(containers.GetContainers()) != n {
		return nil, fmt.Errorf("%d pods are ready and %d containers run of %d", len(pods.GetItems()), len(containers.GetContainers()), n)
	}
	var ids []string
	for _, c := range containers.GetContainers() {
		ids = append(ids, c.GetId())
	}
	slices.Sort(ids)
	return ids, nil
}

// clear takes every pod of the runtime away.
func (k *kubelet) clear(ctx context.Context) {
	pods, err := k.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return
	}
	_ = each(len(pods.GetItems()), 10, func(i int) error {
		id := pods.GetItems()[i].GetId()
		_, _ = k.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, err := k.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
}

func (k *kubelet) close() { _ = k.conn.Close() }
