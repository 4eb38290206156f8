package nri_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/nri"
	"berth/spec"
)

// TestMain is also the plugin that a node starts from its folder.
func TestMain(m *testing.M) {
	if out := os.Getenv("NRI_TEST_OUT"); out != "" {
		p := &plugin{}
		p.onSync = func([]*api.PodSandbox, []*api.Container) {
			_ = os.WriteFile(out, []byte(p.configured), 0o600)
		}
		s, err := stub.New(p)
		if err != nil {
			os.Exit(1)
		}
		_ = s.Run(context.Background())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// plugin writes down what it is told, and answers what it was set to.
type plugin struct {
	mu         sync.Mutex
	events     []string
	configured string
	pods       []string // of Synchronize
	containers []*api.Container
	last       *api.Container
	lastPod    *api.PodSandbox

	hold       chan struct{} // Synchronize waits for it
	reached    chan struct{}
	onSync     func([]*api.PodSandbox, []*api.Container)
	syncUpdate []*api.ContainerUpdate
	create     func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update     func(*api.LinuxResources) ([]*api.ContainerUpdate, error)
	pod        func(event string) error
}

func (p *plugin) add(event, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event+" "+id)
}

func (p *plugin) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) knows(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.events, "create "+id) ||
		slices.ContainsFunc(p.containers, func(c *api.Container) bool { return c.Id == id })
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configured = config + " " + runtime + " " + version
	return 0, nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	for _, pod := range pods {
		p.pods = append(p.pods, pod.Id)
	}
	p.containers = containers
	p.mu.Unlock()
	if p.onSync != nil {
		p.onSync(pods, containers)
	}
	if p.hold != nil {
		close(p.reached)
		<-p.hold
	}
	return p.syncUpdate, nil
}

func (p *plugin) podEvent(event string, pod *api.PodSandbox) error {
	p.add(event, pod.Id)
	p.mu.Lock()
	p.lastPod = pod
	p.mu.Unlock()
	if p.pod != nil {
		return p.pod(event)
	}
	return nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.podEvent("run", pod)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	return p.podEvent(fmt.Sprintf("update %d/%d", overhead.GetMemory().GetLimit().GetValue(), resources.GetMemory().GetLimit().GetValue()), pod)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.podEvent("updated", pod)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.podEvent("stop", pod)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.podEvent("remove", pod)
}

func (p *plugin) event(event string, c *api.Container) {
	p.add(event, c.Id)
	p.mu.Lock()
	p.last = c
	p.mu.Unlock()
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.event("create", c)
	if p.create != nil {
		return p.create(c)
	}
	return nil, nil, nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.event("created", c)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.event("start", c)
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.event("started", c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.event("update", c)
	if p.update != nil {
		return p.update(r)
	}
	return nil, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.event("updated", c)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.event("stop", c)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.event("remove", c)
	return nil
}

// rooms is the pods that plugins hear of.
type rooms struct {
	mu         sync.Mutex
	pods       []spec.Pod
	containers []spec.PodContainer
	specs      map[string]*specs.Spec
	adjusted   map[string]*specs.LinuxResources
	fail       error
}

func (r *rooms) Pods() []spec.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pods)
}

func (r *rooms) Containers() []spec.PodContainer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.containers)
}

func (r *rooms) ContainerSpec(_ context.Context, id string) (*specs.Spec, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.specs[id]; s != nil {
		return s, nil
	}
	return nil, errs.New(errs.NotFound, "container %s", id)
}

func (r *rooms) AdjustContainer(_ context.Context, id string, limits *specs.LinuxResources) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.adjusted[id] = limits
	return r.fail
}

func (r *rooms) StopContainer(context.Context, string, time.Duration) error { return nil }

func (r *rooms) list(pod spec.Pod, containers ...spec.PodContainer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.pods, func(p spec.Pod) bool { return p.ID == pod.ID }) {
		r.pods = append(r.pods, pod)
	}
	r.containers = append(r.containers, containers...)
}

func (r *rooms) shares(id string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.adjusted[id]; l != nil && l.CPU != nil && l.CPU.Shares != nil {
		return *l.CPU.Shares
	}
	return 0
}

// node is plugins at work.
type node struct {
	*nri.Plugins
	rooms  *rooms
	socket string
}

func start(t *testing.T, config nri.Config, r *rooms) *node {
	t.Helper()
	dir := t.TempDir()
	config.Socket = filepath.Join(dir, "nri.sock")
	if config.PluginDir == "" {
		config.PluginDir = filepath.Join(dir, "none")
	}
	config.Name, config.Version = "berth", "v1"
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	plugins, err := nri.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	if r.specs == nil {
		r.specs = map[string]*specs.Spec{}
	}
	r.adjusted = map[string]*specs.LinuxResources{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := plugins.Run(ctx, r); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	eventually(t, "the socket", func() bool { // its mode is set once it listens
		info, err := os.Stat(config.Socket)
		return err == nil && info.Mode().Perm() == 0o600
	})
	return &node{Plugins: plugins, rooms: r, socket: config.Socket}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(time.Minute); !is(); {
		select {
		case <-limit:
			t.Fatalf("%s: not after 10 s", what)
		case <-tick.C:
		}
	}
}

// connect adds a plugin and waits until it is one more.
func (n *node) connect(t *testing.T, index string, p *plugin) stub.Stub {
	t.Helper()
	before := n.Count()
	s := n.dial(t, index, p)
	eventually(t, "the plugin", func() bool { return n.Count() > before })
	return s
}

func (n *node) dial(t *testing.T, index string, p *plugin) stub.Stub {
	t.Helper()
	s, err := stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx(index), stub.WithSocketPath(n.socket), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func aPod(id string) spec.Pod {
	return spec.Pod{
		ID: id, State: spec.PodReady, IPs: []string{"10.1.2.3"}, NetNS: "/run/ns/net",
		Config: spec.PodConfig{
			Name: "web", Namespace: "shop", UID: "u-1", Labels: map[string]string{"app": "web"},
			Resources: &spec.PodResources{Memory: 512, HugePages: map[string]uint64{"2MB": 4}},
		},
	}
}

func aContainer(id, pod string) spec.PodContainer {
	return spec.PodContainer{
		ID: id, Pod: pod, State: spec.Created, ImageID: "sha256:c", ImageRef: "x@sha256:d", Created: time.Unix(1, 2),
		Config: spec.PodContainerConfig{
			Name: "app", Image: "sha256:c", UserImage: "x:1", Annotations: map[string]string{"a": "b"}, CDI: []string{"v/c=d"},
			Security: spec.PodSecurity{Seccomp: &spec.SecurityProfile{Type: spec.ProfileLocalhost, Localhost: "p.json"}},
		},
	}
}

func aSpec() *specs.Spec {
	shares, swap := uint64(100), int64(1000)
	score := 5
	return &specs.Spec{
		Annotations: map[string]string{"io.kubernetes.cri.sandbox-id": "p1", "old": "1"},
		Process: &specs.Process{
			Args: []string{"sh"}, Env: []string{"PATH=/bin", "GONE=1", "KEPT=2"}, OOMScoreAdj: &score,
			User:    specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1, Soft: 1}},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/old", Type: "bind", Source: "/tmp"}},
		Linux: &specs.Linux{
			CgroupsPath: "/pods/x",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace, Path: "/run/ns/ipc"}, {Type: specs.UTSNamespace}},
			Devices:     []specs.LinuxDevice{{Path: "/dev/old", Type: "c"}},
			Resources:   &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}, Memory: &specs.LinuxMemory{Swap: &swap}},
			Sysctl:      map[string]string{"net.a": "1"},
		},
	}
}

// Whoever may write to the socket may have any program run on the machine.
func TestOnlyRootBecomesAPlugin(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	n := start(t, nri.Config{}, &rooms{})
	eventually(t, "nobody but root may write to the socket", func() bool {
		info, err := os.Stat(n.socket)
		return err == nil && info.Mode().Perm() == 0o600
	})
}

func TestLife(t *testing.T) {
	n := start(t, nri.Config{}, &rooms{})
	p := &plugin{}
	n.connect(t, "10", p)
	ctx, pod, c, oci := t.Context(), aPod("p1"), aContainer("c1", "p1"), aSpec()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(n.RunPod(ctx, pod))
	n.rooms.list(pod)
	must(n.UpdatePod(ctx, pod, &spec.PodResources{Memory: 1}, &spec.PodResources{Memory: 2}))
	must(n.PostUpdatePod(ctx, pod))
	must(n.CreateContainer(ctx, pod, c, oci))
	n.rooms.specs["c1"] = oci
	n.rooms.list(pod, c)
	must(n.PostCreateContainer(ctx, pod, c))
	must(n.StartContainer(ctx, pod, c))
	c.State, c.Pid = spec.Running, 42
	must(n.PostStartContainer(ctx, pod, c))
	p.mu.Lock()
	got := p.last
	p.mu.Unlock()
	if got.Name != "app" || got.PodSandboxId != "p1" || got.Pid != 42 || got.State != api.ContainerState_CONTAINER_RUNNING ||
		got.Annotations["a"] != "b" || got.Annotations["old"] != "1" || !slices.Equal(got.Args, []string{"sh"}) || got.User.GetUid() != 7 ||
		len(got.Mounts) != 2 || got.Linux.Resources.Cpu.Shares.GetValue() != 100 || got.Linux.OomScoreAdj.GetValue() != 5 ||
		got.Linux.SeccompProfile.LocalhostRef != "p.json" || got.CDIDevices[0].Name != "v/c=d" || got.CreatedAt != 1e9+2 ||
		got.Image.Name != "x:1" || got.Image.ConfigDigest != "sha256:c" || got.Rlimits[0].Type != "RLIMIT_NOFILE" {
		t.Errorf("container as a plugin sees it: %v", got)
	}
	must(n.UpdateContainer(ctx, pod, c, &specs.LinuxResources{}))
	must(n.PostUpdateContainer(ctx, pod, c))
	c.State = spec.Stopped
	must(n.StopContainer(ctx, pod, c))
	must(n.StopContainer(ctx, pod, c))
	must(n.RemoveContainer(ctx, pod, c))
	must(n.RemoveContainer(ctx, pod, c))
	must(n.StopPod(ctx, pod))
	must(n.StopPod(ctx, pod))
	must(n.RemovePod(ctx, pod))
	must(n.RemovePod(ctx, pod))
	want := []string{
		"run p1", "update 1/2 p1", "updated p1", "create c1", "created c1", "start c1", "started c1",
		"update c1", "updated c1", "stop c1", "remove c1", "stop p1", "remove p1",
	}
	if got := p.told(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if pod := p.lastPod; pod.Name != "web" || pod.Namespace != "shop" || pod.Uid != "u-1" || pod.Labels["app"] != "web" || pod.Ips[0] != "10.1.2.3" ||
		pod.Linux.PodResources.Memory.Limit.GetValue() != 512 || pod.Linux.PodResources.HugepageLimits[0].PageSize != "2MB" ||
		pod.Linux.Namespaces[0].Path != "/run/ns/net" {
		t.Errorf("pod as a plugin sees it: %v", pod)
	}
}

func TestRefusalIsTidiedUp(t *testing.T) {
	n := start(t, nri.Config{}, &rooms{})
	first, second := &plugin{}, &plugin{}
	n.connect(t, "10", first)
	n.connect(t, "20", second)
	second.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, nil, errors.New("not here")
	}
	second.pod = func(event string) error {
		if event == "run" {
			return errors.New("no pods today")
		}
		return nil
	}
	ctx, pod, c := t.Context(), aPod("p1"), aContainer("c1", "p1")
	if err := n.RunPod(ctx, pod); errs.KindOf(err) != errs.Denied {
		t.Errorf("RunPod = %v", err)
	}
	if err := n.CreateContainer(ctx, pod, c, aSpec()); errs.KindOf(err) != errs.Denied {
		t.Errorf("CreateContainer = %v", err)
	}
	if err := errors.Join(n.RemoveContainer(ctx, pod, c), n.StopPod(ctx, pod), n.RemovePod(ctx, pod)); err != nil {
		t.Fatal(err)
	}
	want := []string{"run p1", "create c1", "stop c1", "remove c1", "stop p1", "remove p1"}
	for _, p := range []*plugin{first, second} {
		if got := p.told(); !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
}

func TestAdjust(t *testing.T) {
	n := start(t, nri.Config{Devices: devices{}}, &rooms{})
	p := &plugin{}
	n.connect(t, "10", p)
	p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddAnnotation("new", "2")
		a.RemoveAnnotation("old")
		a.AddEnv("NEW", "3")
		a.RemoveEnv("GONE")
		a.SetArgs([]string{"sleep", "1"})
		a.AddMount(&api.Mount{Destination: "/data", Type: "bind", Source: "/tmp", Options: []string{"rbind"}})
		a.RemoveMount("/old")
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/true"}}, Poststop: []*api.Hook{{Path: "/bin/false"}}})
		a.AddRlimit("RLIMIT_NOFILE", 20, 10)
		a.AddDevice(&api.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 3})
		a.AddCDIDevice(&api.CDIDevice{Name: "vendor.com/class=one"})
		a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc", Path: "/run/ns/other"})
		a.RemoveNamespace(&api.LinuxNamespace{Type: "uts"})
		a.RemoveDevice("/dev/old")
		a.SetLinuxSysctl("net.b", "2")
		a.SetLinuxSysctl(api.MarkForRemoval("net.a"), "")
		a.SetLinuxMemoryLimit(1 << 20)
		a.SetLinuxCPUShares(512)
		a.AddLinuxUnified("memory.high", "1000")
		a.SetLinuxPidLimits(33)
		a.SetLinuxCgroupsPath("/pods/y")
		score := 77
		a.SetLinuxOomScoreAdj(&score)
		a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_IDLE})
		a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"})
		a.SetLinuxRDTClass("gold")
		return a, nil, nil
	}
	oci := aSpec()
	if err := n.CreateContainer(t.Context(), aPod("p1"), aContainer("c1", "p1"), oci); err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(oci, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "adjusted.json")
	if os.Getenv("UPDATE") != "" {
		_ = os.MkdirAll("testdata", 0o755)
		_ = os.WriteFile(golden, append(got, '\n'), 0o644)
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got)+"\n" {
		t.Errorf("adjusted spec:\n%s", got)
	}
}

type devices struct{}

func (devices) Inject(s *specs.Spec, names []string) error {
	s.Process.Env = append(s.Process.Env, "CDI="+names[0])
	return nil
}

func TestAdjustWhatCannotBe(t *testing.T) {
	n := start(t, nri.Config{}, &rooms{})
	p := &plugin{}
	n.connect(t, "10", p)
	for name, ask := range map[string]func(*api.ContainerAdjustment){
		"CDI":       func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "v/c=d"}) },
		"block I/O": func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("slow") },
		"namespace": func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "moon"}) },
	} {
		p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			ask(a)
			return a, nil, nil
		}
		if err := n.CreateContainer(t.Context(), aPod("p1"), aContainer(name, "p1"), aSpec()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
