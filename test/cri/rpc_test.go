package cri

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/cri/images"
	"berth/test/machine"
)

const tagged = "gcr.io/k8s-staging-cri-tools/test-image-tag:test"

// An image as a volume: what later versions of critest ask besides (5 specs).
func TestImageVolumes(t *testing.T) {
	n := newNode(t, "", "")
	c := n.caller(t)
	app, volume, groups := c.pull(images.Busybox), c.pull(tagged), c.pull("gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest")
	pod := c.pod("volumes")
	with := func(name, image, sub string, readonly bool) *api.ContainerConfig {
		config := c.config(name, app)
		config.Mounts = []*api.Mount{{
			ContainerPath: "/mnt/volume", Readonly: readonly, ImageSubPath: sub, Image: &api.ImageSpec{Image: image, UserSpecifiedImage: tagged},
		}}
		return config
	}

	t.Run("its digest is in the status", func(t *testing.T) {
		id, err := c.create(pod, with("digest", volume, "", true))
		machine.Must(t, err)
		mounts := c.containerStatus(id).GetMounts()
		if len(mounts) != 1 || mounts[0].GetContainerPath() != "/mnt/volume" || mounts[0].GetImage().GetImageRef() != volume || !mounts[0].GetReadonly() {
			t.Errorf("mounts %v, want the image %s", mounts, volume)
		}
	})

	t.Run("is seen, run and not written", func(t *testing.T) {
		id := c.up(pod, with("seen", volume, "", true))
		if out, code := c.sh(id, "ls -A /mnt/volume/bin/sh"); code != 0 {
			t.Errorf("ls: %d, %s", code, out)
		}
		if out, code := c.sh(id, "touch /mnt/volume/new"); code == 0 || !strings.Contains(out, "Read-only file system") {
			t.Errorf("touch: %d, %s", code, out)
		}
		if out, code := c.sh(id, "/mnt/volume/bin/ls /mnt/volume"); code != 0 || !strings.Contains(out, "name") {
			t.Errorf("/mnt/volume/bin/ls: %d, %s", code, out)
		}
	})

	t.Run("is never writable", func(t *testing.T) {
		if id, err := c.create(pod, with("writable", volume, "", false)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("made %s, %v", id, err)
		}
	})

	t.Run("a folder of it", func(t *testing.T) {
		id := c.up(pod, with("folder", groups, "etc", true))
		if out, code := c.sh(id, "ls /mnt/volume/etc/passwd"); code == 0 {
			t.Errorf("the whole image is there: %s", out)
		}
		if out, code := c.sh(id, "grep default-user /mnt/volume/passwd"); code != 0 {
			t.Errorf("passwd: %d, %s", code, out)
		}
		machine.Must(t, second(c.StopContainer(t.Context(), &api.StopContainerRequest{ContainerId: id})))
		machine.Must(t, second(c.RemoveContainer(t.Context(), &api.RemoveContainerRequest{ContainerId: id})))
	})

	t.Run("a folder that it has not", func(t *testing.T) {
		id, err := c.create(pod, with("nothing", volume, "not-there", true))
		if err == nil || !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed") {
			t.Errorf("made %s, %v", id, err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

// metrics are those that critest names; the kernel may lack what stands behind
// some.
const metrics = `blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen
memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap
memory_usage_bytes memory_working_set_bytes network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total
network_transmit_packets_total oom_events_total pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total
pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total
processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes
spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft`

// Every metric is described, has a value, and as many labels as it is said to
// have (2 specs of later versions of critest).
func TestMetrics(t *testing.T) {
	n := newNode(t, "", "")
	c := n.caller(t)
	pod, config := c.pod("metrics"), c.config("app", c.pull(images.Busybox))
	config.Linux.Resources = &api.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}
	id := c.up(pod, config)
	c.sh(id, "mkdir -p /var/lib/x && for i in 1 2 3 4 5; do echo hi >/var/lib/x/$i; done; sync")
	descriptors, err := c.ListMetricDescriptors(t.Context(), &api.ListMetricDescriptorsRequest{})
	machine.Must(t, err)
	keys := map[string][]string{}
	for _, d := range descriptors.GetDescriptors() {
		if keys[d.GetName()] != nil || len(d.GetLabelKeys()) == 0 || d.GetHelp() == "" {
			t.Errorf("descriptor %v", d)
		}
		keys[d.GetName()] = d.GetLabelKeys()
	}
	all, err := c.ListPodSandboxMetrics(t.Context(), &api.ListPodSandboxMetricsRequest{})
	machine.Must(t, err)
	if len(all.GetPodMetrics()) != 1 || all.GetPodMetrics()[0].GetPodSandboxId() != pod || len(all.GetPodMetrics()[0].GetContainerMetrics()) != 1 {
		t.Fatal(all)
	}
	one := all.GetPodMetrics()[0]
	values := map[string]uint64{}
	for _, m := range slices.Concat(one.GetMetrics(), one.GetContainerMetrics()[0].GetMetrics()) {
		if len(m.GetLabelValues()) != len(keys[m.GetName()]) {
			t.Errorf("%s has the labels %q, and was said to have %q", m.GetName(), m.GetLabelValues(), keys[m.GetName()])
		}
		values[m.GetName()] = m.GetValue().GetValue()
	}
	for name := range strings.FieldsSeq(metrics) {
		name = "container_" + name
		if keys[name] == nil {
			t.Errorf("%s is not described", name)
		}
		if _, has := values[name]; !has {
			t.Errorf("%s has no value", name)
		}
	}
	for name := range keys {
		if _, has := values[name]; !has {
			t.Errorf("%s is described, and has no value", name)
		}
	}
	for name, want := range map[string]uint64{"spec_cpu_period": 100000, "spec_cpu_quota": 20000, "spec_cpu_shares": 1024, "spec_memory_limit_bytes": 64 << 20} {
		if got := values["container_"+name]; got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	for _, name := range []string{"memory_usage_bytes", "memory_working_set_bytes", "processes", "threads", "file_descriptors", "fs_usage_bytes", "start_time_seconds", "last_seen", "ulimits_soft"} {
		if values["container_"+name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
}

// partsOf takes a stream to its end.
func partsOf[T any](t *testing.T, s grpc.ServerStreamingClient[T], err error) []*T {
	t.Helper()
	machine.Must(t, err)
	var parts []*T
	for {
		part, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return parts
		}
		machine.Must(t, err)
		parts = append(parts, part)
	}
}

// The lists that come in parts have what the others have.
func TestStreamedLists(t *testing.T) {
	n := newNode(t, "", "")
	c, ctx := n.caller(t), t.Context()
	image := c.pull(images.Busybox)
	pod, other := c.pod("one"), c.pod("two")
	ids := []string{c.up(pod, c.config("a", image)), c.up(pod, c.config("b", image)), c.up(other, c.config("c", image))}

	var pods, ready, containers, running, ofPod, stats, podStats, metrics, pulled []string
	s1, err := c.StreamPodSandboxes(ctx, &api.StreamPodSandboxesRequest{Filter: &api.PodSandboxFilter{LabelSelector: map[string]string{"app": "one"}}})
	for _, part := range partsOf(t, s1, err) {
		for _, p := range part.GetPodSandboxes() {
			pods = append(pods, p.GetId())
		}
	}
	s1, err = c.StreamPodSandboxes(ctx, &api.StreamPodSandboxesRequest{Filter: &api.PodSandboxFilter{State: &api.PodSandboxStateValue{}}})
	for _, part := range partsOf(t, s1, err) {
		for _, p := range part.GetPodSandboxes() {
			ready = append(ready, p.GetId())
		}
	}
	list := func(filter *api.ContainerFilter) (found []string) {
		s, err := c.StreamContainers(ctx, &api.StreamContainersRequest{Filter: filter})
		for _, part := range partsOf(t, s, err) {
			for _, one := range part.GetContainers() {
				found = append(found, one.GetId())
			}
		}
		return found
	}
	containers, ofPod = list(nil), list(&api.ContainerFilter{PodSandboxId: pod})
	running = list(&api.ContainerFilter{State: &api.ContainerStateValue{State: api.ContainerState_CONTAINER_RUNNING}, Id: ids[2][:20]})
	s3, err := c.StreamContainerStats(ctx, &api.StreamContainerStatsRequest{Filter: &api.ContainerStatsFilter{LabelSelector: map[string]string{"name": "b"}}})
	for _, part := range partsOf(t, s3, err) {
		for _, one := range part.GetContainerStats() {
			stats = append(stats, one.GetAttributes().GetId())
		}
	}
	s4, err := c.StreamPodSandboxStats(ctx, &api.StreamPodSandboxStatsRequest{Filter: &api.PodSandboxStatsFilter{Id: other}})
	for _, part := range partsOf(t, s4, err) {
		for _, one := range part.GetPodSandboxStats() {
			podStats = append(podStats, one.GetAttributes().GetId())
		}
	}
	s5, err := c.StreamPodSandboxMetrics(ctx, &api.StreamPodSandboxMetricsRequest{})
	for _, part := range partsOf(t, s5, err) {
		for _, one := range part.GetPodSandboxMetrics() {
			metrics = append(metrics, one.GetPodSandboxId())
		}
	}
	s6, err := c.images.StreamImages(ctx, &api.StreamImagesRequest{Filter: &api.ImageFilter{Image: &api.ImageSpec{Image: images.Busybox}}})
	for _, part := range partsOf(t, s6, err) {
		for _, one := range part.GetImages() {
			pulled = append(pulled, one.GetId())
		}
	}
	for what, is := range map[string]struct{ got, want []string }{
		"pods by label": {pods, []string{pod}}, "ready pods": {ready, []string{pod, other}},
		"containers": {containers, ids}, "of a pod": {ofPod, ids[:2]}, "running, by the beginning of an id": {running, ids[2:]},
		"statistics": {stats, ids[1:2]}, "statistics of pods": {podStats, []string{other}}, "metrics": {metrics, []string{pod, other}}, "images": {pulled, []string{image}},
	} {
		slices.Sort(is.got)
		if want := slices.Sorted(slices.Values(is.want)); !slices.Equal(is.got, want) {
			t.Errorf("%s: %v, want %v", what, is.got, want)
		}
	}
	if none := list(&api.ContainerFilter{Id: "nobody"}); len(none) > 0 {
		t.Errorf("nobody: %v", none)
	}
}
