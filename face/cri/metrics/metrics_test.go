package metrics_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/face/cri/metrics"
	"berth/node/stats"
	"berth/spec"
)

// required are the metrics that Kubernetes' own suite asks for.
func required() []string {
	names := strings.Fields(`blkio_device_usage_total
		cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total
		file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total
		hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen
		memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
		network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
		network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total
		oom_events_total
		pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
		pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total
		processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes
		start_time_seconds threads threads_max ulimits_soft`)
	for i, name := range names {
		names[i] = "container_" + name
	}
	return names
}

// told is a metric's values by the labels that are not of the container itself.
type told map[string]map[string]uint64

// metricsOf checks that each metric of a pod has a descriptor whose labels are
// its own, and gives the values.
func metricsOf(t *testing.T, s *metrics.Service, pod string) told {
	t.Helper()
	described, err := s.ListMetricDescriptors(t.Context(), &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range described.GetDescriptors() {
		if d.GetHelp() == "" || len(d.GetLabelKeys()) < 6 || keys[d.GetName()] != nil {
			t.Errorf("descriptor %v", d)
		}
		keys[d.GetName()] = d.GetLabelKeys()
	}
	list := podMetrics(t, s)
	found := told{}
	for _, p := range list.GetPodMetrics() {
		if p.GetPodSandboxId() != pod {
			continue
		}
		all := p.GetMetrics()
		for _, c := range p.GetContainerMetrics() {
			all = append(all, c.GetMetrics()...)
		}
		seen := map[string]bool{}
		for _, m := range all {
			if len(m.GetLabelValues()) != len(keys[m.GetName()]) {
				t.Errorf("%s has labels %v, and %v are described", m.GetName(), m.GetLabelValues(), keys[m.GetName()])
				continue
			}
			if one := m.GetName() + strings.Join(m.GetLabelValues(), "|"); seen[one] {
				t.Errorf("twice: %s", one)
			} else {
				seen[one] = true
			}
			if found[m.GetName()] == nil {
				found[m.GetName()] = map[string]uint64{}
			}
			if container := m.GetLabelValues()[3]; container != "" || found[m.GetName()] == nil {
				found[m.GetName()][strings.Join(m.GetLabelValues()[6:], "|")] = m.GetValue().GetValue()
			}
		}
	}
	for name := range keys {
		if len(found[name]) == 0 {
			t.Errorf("%s is described, and has no value", name)
		}
	}
	return found
}

func (f told) of(t *testing.T, name string, labels ...string) uint64 {
	t.Helper()
	v, ok := f["container_"+name][strings.Join(labels, "|")]
	if !ok {
		t.Errorf("no %s %v: %v", name, labels, f["container_"+name])
	}
	return v
}

// v2 is a machine with cgroup version 2 and one pod with one container.
func v2(t *testing.T) (*fakePods, *stats.Reader) {
	t.Helper()
	root, proc := t.TempDir(), t.TempDir()
	const psi = "some avg10=1.50 avg60=0.25 avg300=0.10 total=3000000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=2000000\n"
	files := map[string]string{
		"cgroup.controllers": "cpu io memory pids hugetlb\n", "cpu.pressure": psi,
		"cpu.stat":       "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 9\nnr_throttled 3\nthrottled_usec 4000000\n",
		"cpu.weight":     "20\n",
		"cpu.max":        "50000 100000\n",
		"memory.current": "5000000\n", "memory.max": "8000000\n", "memory.peak": "6000000\n", "memory.low": "4096\n",
		"memory.swap.current": "100\n", "memory.swap.max": "1000\n",
		"memory.stat":   "anon 1000\nfile 2000\nkernel 3000\nfile_mapped 40\ninactive_file 1500000\npgfault 50\npgmajfault 6\n",
		"memory.events": "low 0\nhigh 0\nmax 11\noom 3\noom_kill 2\n",
		"pids.current":  "4\n", "pids.max": "max\n",
		"io.stat":         "8:0 rbytes=1024 wbytes=2048 rios=3 wios=4 dbytes=5 dios=6\n",
		"cgroup.procs":    "12\n",
		"memory.pressure": psi, "io.pressure": psi,
	}
	meterPages, _ := stats.OpenAt(root, proc)
	for _, size := range meterPages.HugePages() {
		files["hugetlb."+size+".current"], files["hugetlb."+size+".peak"] = "2097152\n", "4194304\n"
	}
	for name, text := range files {
		for _, dir := range []string{"", "kubepods/pod1", "kubepods/pod1/c1"} {
			put(t, filepath.Join(root, dir, name), text)
		}
	}
	put(t, filepath.Join(root, "kubepods/pod1/cpu.stat"), "usage_usec 7000000\nuser_usec 3000000\nsystem_usec 2000000\n")
	put(t, filepath.Join(proc, "12/stat"), "12 (x) S 1\n")
	put(t, filepath.Join(proc, "12/net/dev"), "Inter-|\n face |\n  eth\xff: 1 1 1 1 0 0 0 0 1 1 1 1 0 0 0 0\n  eth0: 10 11 12 13 0 0 0 0 20 21 22 23 0 0 0 0\n")
	meter, err := stats.OpenAt(root, proc)
	if err != nil {
		t.Fatal(err)
	}
	return &fakePods{
		pods: []spec.Pod{{
			ID: "p-1", State: spec.PodReady, NetNS: "/run/none", Networks: []spec.PodInterface{{Name: "eth0"}},
			Config: spec.PodConfig{Name: "front", Namespace: "shop", UID: "u", Attempt: 1, CgroupParent: "/kubepods/pod1", Labels: map[string]string{"app": "front"}, Annotations: map[string]string{"a": "b"}},
		}},
		containers: []spec.PodContainer{{
			ID: "c-1", Pod: "p-1", State: spec.Running, Pid: 12, Cgroup: "/kubepods/pod1/c1", Started: time.Now().Add(-10 * time.Second), ImageRef: "img@sha256:1",
			Config:    spec.PodContainerConfig{Name: "web", UserImage: "img:1", Labels: map[string]string{"tier": "x"}, Annotations: map[string]string{"c": "d"}},
			Resources: spec.PodResources{CPUShares: 512},
		}},
	}, meter
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestMetricsOfVersion2(t *testing.T) {
	pods, meter := v2(t)
	s := serviceOf(t, pods, meter, &fakeLayers{size: 777})
	all := metricsOf(t, s, "p-1")
	for _, name := range required() {
		if strings.HasPrefix(name, "container_hugetlb") && len(meter.HugePages()) == 0 {
			continue
		}
		if all[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	device := meter.DeviceName(8, 0)
	for name, want := range map[string]uint64{
		"cpu_usage_seconds_total": 5, "cpu_user_seconds_total": 3, "cpu_system_seconds_total": 2, "cpu_cfs_periods_total": 9,
		"cpu_cfs_throttled_periods_total": 3, "cpu_cfs_throttled_seconds_total": 4,
		"memory_usage_bytes": 5000000, "memory_working_set_bytes": 3500000, "memory_max_usage_bytes": 6000000, "memory_cache": 2000, "memory_rss": 1000,
		"memory_swap": 100, "memory_mapped_file": 40, "memory_kernel_usage": 3000, "memory_failcnt": 11, "oom_events_total": 2,
		"memory_failures_total pgfault container": 50, "memory_failures_total pgmajfault hierarchy": 6,
		"processes": 1, "threads": 4, "threads_max": 0, "tasks_state sleeping": 1, "scrape_error": 0,
		"fs_usage_bytes " + fileSystem(t): 777, "fs_reads_bytes_total " + device: 1024, "fs_writes_total " + device: 4, "fs_sector_writes_total " + device: 4,
		"blkio_device_usage_total " + device + " 8 0 Write": 2048, "blkio_device_usage_total " + device + " 8 0 Discard": 5,
		"network_receive_bytes_total eth0": 10, "network_transmit_packets_total eth0": 21, "network_transmit_packets_dropped_total eth0": 23, "network_receive_errors_total eth?": 1,
		"spec_cpu_period": 100000, "spec_cpu_quota": 50000, "spec_cpu_shares": 512, "spec_memory_limit_bytes": 8000000,
		"spec_memory_reservation_limit_bytes": 4096, "spec_memory_swap_limit_bytes": 1000,
		"pressure_cpu_waiting_seconds_total": 3, "pressure_io_stalled_seconds_total": 2,
	} {
		parts := strings.Split(name, " ")
		if got := all.of(t, parts[0], parts[1:]...); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if at := all.of(t, "last_seen"); time.Since(time.Unix(int64(at), 0)) > time.Minute { //nolint:gosec // a time
		t.Errorf("last seen at %d", at)
	}
	if at := all.of(t, "start_time_seconds"); at != uint64(pods.containers[0].Started.Unix()) { //nolint:gosec // a time
		t.Errorf("started at %d", at)
	}
}

func fileSystem(t *testing.T) string {
	t.Helper()
	meter, err := stats.Open()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := meter.FileSystem(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return fs.Device
}

// podMetrics are the metrics of all pods as a client gets them.
func podMetrics(t *testing.T, s *metrics.Service) *cri.ListPodSandboxMetricsResponse {
	t.Helper()
	list, err := s.ListPodSandboxMetrics(t.Context(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := proto.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var got cri.ListPodSandboxMetricsResponse
	if err := proto.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for _, p := range got.GetPodMetrics() {
		for _, c := range p.GetContainerMetrics() {
			for _, m := range append(c.GetMetrics(), p.GetMetrics()...) {
				if len(c.ProtoReflect().GetUnknown())+len(p.ProtoReflect().GetUnknown())+len(m.ProtoReflect().GetUnknown()) > 0 || m.GetValue() == nil || m.GetName() == "" {
					t.Fatalf("metric %v of %v", m, c)
				}
			}
		}
	}
	return &got
}

// What a pod as a whole uses has no container, that of its network is POD, and
// what is told a second time says of when it is.
func TestMetricsOfAPodAndLabels(t *testing.T) {
	pods, meter := v2(t)
	s := serviceOf(t, pods, meter, &fakeLayers{})
	for _, cached := range []bool{false, true} {
		list := podMetrics(t, s)
		p := list.GetPodMetrics()[0]
		labels := map[string]string{}
		for _, m := range p.GetMetrics() {
			labels[m.GetName()] = strings.Join(m.GetLabelValues(), "|")
			if cached != (m.GetTimestamp() > 0) {
				t.Errorf("%s has the time %d", m.GetName(), m.GetTimestamp())
			}
			if m.GetName() == "container_cpu_usage_seconds_total" && m.GetValue().GetValue() != 7 {
				t.Errorf("the pod used %d seconds", m.GetValue().GetValue())
			}
		}
		if labels["container_cpu_usage_seconds_total"] != "/kubepods/pod1||||front|shop" || labels["container_network_receive_bytes_total"] != "/kubepods/pod1|||POD|front|shop|eth?" {
			t.Errorf("labels %v", labels)
		}
		c := p.GetContainerMetrics()[0]
		if m := c.GetMetrics()[0]; c.GetContainerId() != "c-1" || strings.Join(m.GetLabelValues(), "|") != "/kubepods/pod1/c1|c-1|img:1|web|front|shop" || m.GetMetricType() != cri.MetricType_COUNTER {
			t.Errorf("%v", m)
		}
	}
}

func TestStatsOfVersion2(t *testing.T) {
	pods, meter := v2(t)
	s := serviceOf(t, pods, meter, &fakeLayers{size: 777})
	one, err := s.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: "c-"})
	if err != nil {
		t.Fatal(err)
	}
	c := one.GetStats()
	if a := c.GetAttributes(); a.GetId() != "c-1" || a.GetMetadata().GetName() != "web" || a.GetLabels()["tier"] != "x" || a.GetAnnotations()["c"] != "d" {
		t.Errorf("attributes %v", a)
	}
	if c.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 5e9 || c.GetCpu().GetTimestamp() == 0 || c.GetCpu().GetPsi().GetFull().GetTotal() != 2e9 || c.GetCpu().GetPsi().GetSome().GetAvg10() != 1.5 {
		t.Errorf("cpu %v", c.GetCpu())
	}
	// Five seconds in the ten since it was started.
	if rate := c.GetCpu().GetUsageNanoCores().GetValue(); rate < 4e8 || rate > 6e8 {
		t.Errorf("%d nano cores", rate)
	}
	m := c.GetMemory()
	if m.GetWorkingSetBytes().GetValue() != 3500000 || m.GetAvailableBytes().GetValue() != 4500000 || m.GetRssBytes().GetValue() != 1000 || m.GetPageFaults().GetValue() != 50 ||
		m.GetMajorPageFaults().GetValue() != 6 || m.GetUsageBytes().GetValue() != 5000000 || m.GetPsi() == nil {
		t.Errorf("memory %v", m)
	}
	if c.GetSwap().GetSwapUsageBytes().GetValue() != 100 || c.GetSwap().GetSwapAvailableBytes().GetValue() != 900 || c.GetIo().GetPsi().GetFull().GetAvg10() != 0.5 {
		t.Errorf("swap %v, io %v", c.GetSwap(), c.GetIo())
	}
	if w := c.GetWritableLayer(); w.GetUsedBytes().GetValue() != 777 || w.GetInodesUsed().GetValue() != 3 || w.GetTimestamp() == 0 || w.GetFsId().GetMountpoint() == "" {
		t.Errorf("writable layer %v", w)
	}

	list, err := s.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{})
	if err != nil || len(list.GetStats()) != 1 {
		t.Fatal(list, err)
	}
	p := list.GetStats()[0]
	l := p.GetLinux()
	if p.GetAttributes().GetMetadata().GetUid() != "u" || p.GetAttributes().GetAnnotations()["a"] != "b" || p.GetAttributes().GetMetadata().GetAttempt() != 1 {
		t.Errorf("attributes %v", p.GetAttributes())
	}
	if l.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 7e9 || len(l.GetContainers()) != 1 || l.GetProcess().GetProcessCount().GetValue() != 2 || l.GetIo().GetPsi() == nil {
		t.Errorf("linux %v", l)
	}
	if n := l.GetNetwork(); n.GetDefaultInterface().GetName() != "eth0" || n.GetDefaultInterface().GetTxBytes().GetValue() != 20 || len(n.GetInterfaces()) != 1 {
		t.Errorf("network %v", n)
	}

	usage, err := s.Usage(t.Context(), []string{"p-1"})
	if err != nil || len(usage) != 1 || usage[0].CPU != 7e9 || usage[0].Containers[0].Reads != 1024 || *usage[0].Containers[0].Written != 777 || usage[0].IOWait != 3e9 {
		t.Errorf("%+v, %v", usage, err)
	}
	if _, err := s.Usage(t.Context(), []string{"none"}); !errors.Is(err, errs.NotFound) {
		t.Errorf("usage of no pod: %v", err)
	}
	for _, err := range []error{
		second(s.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: "x"})),
		second(s.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: "x"})),
	} {
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("of nothing: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Pods that share a cgroup get the sum of their containers, and so does one
// without a cgroup of its own.
func TestPodsThatShareACgroup(t *testing.T) {
	pods, meter := v2(t)
	other := pods.pods[0]
	other.ID = "p-2"
	pods.pods = append(pods.pods, other)
	again := pods.containers[0]
	again.ID = "c-2"
	pods.containers = append(pods.containers, again)
	s := serviceOf(t, pods, meter, &fakeLayers{})
	of := func(id string) *cri.LinuxPodSandboxStats {
		r, err := s.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStats().GetLinux()
	}
	if l := of("p-1"); l.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 10e9 || l.GetMemory().GetAvailableBytes().GetValue() != 9000000 || l.GetProcess().GetProcessCount().GetValue() != 2 {
		t.Errorf("of two containers: %v", l)
	}
	if l := of("p-2"); l.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 0 || l.GetCpu().GetTimestamp() == 0 {
		t.Errorf("of none: %v", l)
	}
	pods.pods[1].State = spec.PodNotReady // an earlier attempt of the same pod
	if l := of("p-1"); l.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 7e9 {
		t.Errorf("alone again: %v", l)
	}
}

func TestFilters(t *testing.T) {
	pods, meter := v2(t)
	for i, state := range []spec.State{spec.Created, spec.Stopped, spec.Paused} {
		c := pods.containers[0]
		c.ID, c.State = fmt.Sprint("d-", i), state
		pods.containers = append(pods.containers, c)
	}
	s := serviceOf(t, pods, meter, &fakeLayers{})
	for _, want := range []struct {
		filter *cri.ContainerStatsFilter
		ids    string
	}{
		{nil, "c-1 d-2"},
		{&cri.ContainerStatsFilter{Id: "c"}, "c-1"},
		{&cri.ContainerStatsFilter{Id: "d-0"}, ""},
		{&cri.ContainerStatsFilter{Id: "nothing"}, ""},
		{&cri.ContainerStatsFilter{PodSandboxId: "p"}, "c-1 d-2"},
		{&cri.ContainerStatsFilter{PodSandboxId: "p-2"}, ""},
		{&cri.ContainerStatsFilter{LabelSelector: map[string]string{"tier": "x"}}, "c-1 d-2"},
		{&cri.ContainerStatsFilter{LabelSelector: map[string]string{"tier": "y"}}, ""},
	} {
		r, err := s.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{Filter: want.filter})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, c := range r.GetStats() {
			ids = append(ids, c.GetAttributes().GetId())
		}
		if got := strings.Join(ids, " "); got != want.ids {
			t.Errorf("%v: %q, want %q", want.filter, got, want.ids)
		}
	}
	for want, filter := range map[int]*cri.PodSandboxStatsFilter{
		1: {Id: "p-", LabelSelector: map[string]string{"app": "front"}}, 0: {LabelSelector: map[string]string{"app": "back"}},
	} {
		r, err := s.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{Filter: filter})
		if err != nil || len(r.GetStats()) != want {
			t.Errorf("%v: %v, %v", filter, r, err)
		}
	}
	// One that does not run has its attributes, and what it has written.
	r, err := s.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: "d-1"})
	if err != nil || r.GetStats().GetCpu() != nil || r.GetStats().GetWritableLayer() == nil {
		t.Errorf("%v, %v", r, err)
	}
}

// A tree that takes long to count holds up nobody, and is counted once.
func TestSlowLayers(t *testing.T) {
	pods, meter := v2(t)
	layers := &fakeLayers{size: 5, slow: make(chan struct{})}
	s := serviceOf(t, pods, meter, layers)
	begun := time.Now()
	for range 3 {
		r, err := s.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{})
		if err != nil || r.GetStats()[0].GetWritableLayer() != nil || r.GetStats()[0].GetCpu() == nil {
			t.Fatalf("%v, %v", r, err)
		}
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("three lists took %v", took)
	}
	close(layers.slow)
	r, err := s.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: "c-1"})
	if err != nil || r.GetStats().GetWritableLayer().GetUsedBytes().GetValue() != 5 {
		t.Errorf("%v, %v", r, err)
	}
	if n := layers.calls.Load(); n != 1 {
		t.Errorf("counted %d times", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseBreaksOff(t *testing.T) {
	pods, meter := v2(t)
	s := serviceOf(t, pods, meter, &fakeLayers{slow: make(chan struct{})})
	if _, err := s.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	_ = s.Close()
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("closing took %v", took)
	}
}

// On this machine, whatever its cgroups: real processes.
func TestMetricsOfThisMachine(t *testing.T) {
	pods := realPods(t, 2)
	s := newService(t, pods)
	meter, err := stats.Open()
	if err != nil {
		t.Fatal(err)
	}
	list := podMetrics(t, s)
	if len(list.GetPodMetrics()) != 2 {
		t.Fatal(list)
	}
	values := map[string]uint64{}
	for _, m := range list.GetPodMetrics()[0].GetContainerMetrics()[0].GetMetrics() {
		values[m.GetName()] = m.GetValue().GetValue()
	}
	for _, name := range required() {
		_, there := values[name]
		optional := strings.HasPrefix(name, "container_network") || // they have lo only
			strings.HasPrefix(name, "container_pressure") && !meter.Pressure() || strings.HasPrefix(name, "container_hugetlb") && len(meter.HugePages()) == 0
		if !there && !optional {
			t.Errorf("no %s", name)
		}
	}
	pid := pods.containers[0].Pid
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	if values["container_processes"] != 1 || values["container_threads"] != 1 || values["container_file_descriptors"] != uint64(len(files)) || values["container_memory_usage_bytes"] == 0 {
		t.Errorf("%d files, and %v", len(files), values)
	}
	cgroup := pods.containers[0].Cgroup
	file := filepath.Join("/sys/fs/cgroup/memory", cgroup, "memory.max_usage_in_bytes")
	if meter.Unified() {
		file = filepath.Join("/sys/fs/cgroup", cgroup, "memory.peak")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	peak, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || values["container_memory_max_usage_bytes"] > peak || values["container_memory_max_usage_bytes"] == 0 {
		t.Errorf("peak %d, and the file says %d (%v)", values["container_memory_max_usage_bytes"], peak, err)
	}
	// One ends between the list of containers and the look at it.
	pods.containers[1].Cgroup = "/berth-metrics-test-gone"
	gone := podMetrics(t, newService(t, pods))
	told := gone.GetPodMetrics()[1].GetContainerMetrics()[0].GetMetrics()
	if len(told) != 1 || told[0].GetName() != "container_scrape_error" || told[0].GetValue().GetValue() != 1 {
		t.Errorf("of one that is gone: %v", told)
	}
}
