package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/cri/images"
	"berth/test/machine"
)

// caller speaks to a node as kubelet does.
type caller struct {
	*testing.T
	node *node
	api.RuntimeServiceClient
	images api.ImageServiceClient
	conn   *grpc.ClientConn
}

func (n *node) caller(t *testing.T) *caller {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	machine.Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &caller{t, n, api.NewRuntimeServiceClient(conn), api.NewImageServiceClient(conn), conn}
}

func (c *caller) pull(name string) string {
	c.Helper()
	answer, err := c.images.PullImage(c.Context(), &api.PullImageRequest{Image: &api.ImageSpec{Image: name}})
	machine.Must(c, err)
	return answer.GetImageRef()
}

func (c *caller) podConfig(name string) *api.PodSandboxConfig {
	return &api.PodSandboxConfig{
		Metadata: &api.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: "uid-" + name}, LogDirectory: c.node.Dir + "/logs",
		Labels: map[string]string{"app": name}, Linux: &api.LinuxPodSandboxConfig{},
	}
}

func (c *caller) pod(name string) string {
	c.Helper()
	answer, err := c.RunPodSandbox(c.Context(), &api.RunPodSandboxRequest{Config: c.podConfig(name)})
	machine.Must(c, err)
	c.Cleanup(func() {
		_, _ = c.RemovePodSandbox(context.Background(), &api.RemovePodSandboxRequest{PodSandboxId: answer.GetPodSandboxId()})
	})
	return answer.GetPodSandboxId()
}

// config is that of a container which runs until it is stopped.
func (c *caller) config(name, image string) *api.ContainerConfig {
	return &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: name}, Image: &api.ImageSpec{Image: image, UserSpecifiedImage: images.Busybox},
		Command: []string{"sh", "-c", forever}, LogPath: name + ".log", Labels: map[string]string{"name": name}, Linux: &api.LinuxContainerConfig{},
	}
}

func (c *caller) create(pod string, config *api.ContainerConfig) (string, error) {
	answer, err := c.CreateContainer(c.Context(), &api.CreateContainerRequest{PodSandboxId: pod, Config: config})
	return answer.GetContainerId(), err
}

// up makes a container that runs.
func (c *caller) up(pod string, config *api.ContainerConfig) string {
	c.Helper()
	id, err := c.create(pod, config)
	machine.Must(c, err)
	_, err = c.StartContainer(c.Context(), &api.StartContainerRequest{ContainerId: id})
	machine.Must(c, err)
	return id
}

// sh runs a line in a container and returns what it says, and its exit code.
func (c *caller) sh(id, line string) (out string, code int32) {
	c.Helper()
	answer, err := c.ExecSync(c.Context(), &api.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", line}, Timeout: 20})
	machine.Must(c, err)
	return string(answer.GetStdout()) + string(answer.GetStderr()), answer.GetExitCode()
}

func (c *caller) containerStatus(id string) *api.ContainerStatus {
	c.Helper()
	answer, err := c.ContainerStatus(c.Context(), &api.ContainerStatusRequest{ContainerId: id})
	machine.Must(c, err)
	return answer.GetStatus()
}

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

// Whatever is asked, however little sense it makes, is answered: by a code that
// says whose fault it is, and by a node that lives on.
func TestNonsense(t *testing.T) {
	n := newNode(t, "", "")
	c := n.caller(t)
	image, pod := c.pull(images.Busybox), c.pod("sane")
	sane := c.up(pod, c.config("sane", image))
	words := []string{
		"", "x", pod, pod[:9], sane, image, images.Busybox, "a/b", "../..", "/", "/tmp", "/proc/self/exe", "localhost/x", "\x00", "\n", strings.Repeat("x", 300), strings.Repeat("ü", 3000),
		"runc", "0-3", "memory.max", "max", "net.ipv4.ip_forward", "kernel.shm_rmid_forced", "2MB", "rwm", "true", "sh", "-1", "%s", "10.0.0.0/8", "CHOWN", "ALL", "noexec", "vendor.com/class=name", "sane",
	}
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same each time
	const rounds = 25
	sensible := map[protoreflect.Name]func(name string) proto.Message{
		"RunPodSandbox": func(name string) proto.Message { return &api.RunPodSandboxRequest{Config: c.podConfig(name)} },
		"CreateContainer": func(name string) proto.Message {
			config := c.config(name, image)
			config.Mounts = []*api.Mount{{ContainerPath: "/host", HostPath: n.Dir}, {ContainerPath: "/image", Readonly: true, Image: &api.ImageSpec{Image: image}}}
			return &api.CreateContainerRequest{PodSandboxId: pod, Config: config}
		},
		"UpdateContainerResources": func(string) proto.Message {
			return &api.UpdateContainerResourcesRequest{ContainerId: sane, Linux: &api.LinuxContainerResources{CpuShares: 500}}
		},
		"ExecSync": func(string) proto.Message {
			return &api.ExecSyncRequest{ContainerId: sane, Cmd: []string{"true"}, Timeout: 1}
		},
	}
	// What ends or removes comes last, so that the others have something to ask for.
	var methods, last []protoreflect.MethodDescriptor
	for _, service := range []protoreflect.Name{"RuntimeService", "ImageService"} {
		all := api.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services().ByName(service).Methods()
		for i := range all.Len() {
			if name := string(all.Get(i).Name()); strings.HasPrefix(name, "Stop") || strings.HasPrefix(name, "Remove") {
				last = append(last, all.Get(i))
			} else {
				methods = append(methods, all.Get(i))
			}
		}
	}
	for _, method := range append(methods, last...) {
		for round := range rounds {
			request := dynamicpb.NewMessage(method.Input())
			if most := sensible[method.Name()]; most != nil && round%4 != 0 { // all but one field of it
				body, err := proto.Marshal(most(fmt.Sprint("n", round)))
				machine.Must(t, errors.Join(err, proto.Unmarshal(body, request)))
				blot(rng, request, words)
			} else if round > 0 {
				scribble(rng, request, words, 0)
			}
			c.nonsense(method, request)
			select {
			case <-n.Ended():
				t.Fatalf("the node has ended of %s %v\n%s", method.Name(), request, n.Says())
			default:
			}
		}
	}
	if log := n.Says(); strings.Contains(log, "panic") {
		t.Errorf("a panic:\n%s", log)
	}
}

// nonsense makes a call.
func (c *caller) nonsense(method protoreflect.MethodDescriptor, request proto.Message) {
	ctx, cancel := context.WithTimeout(c.Context(), 20*time.Second)
	defer cancel()
	name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	begun := time.Now()
	var err error
	if method.IsStreamingServer() {
		ctx, stop := context.WithTimeout(ctx, 200*time.Millisecond)
		defer stop()
		var s grpc.ClientStream
		if s, err = c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name); err == nil {
			err = errors.Join(s.SendMsg(request), s.CloseSend())
			for err == nil {
				err = s.RecvMsg(dynamicpb.NewMessage(method.Output()))
			}
		}
		if errors.Is(err, io.EOF) || status.Code(err) == codes.DeadlineExceeded {
			return
		}
	} else {
		err = c.conn.Invoke(ctx, name, request, dynamicpb.NewMessage(method.Output()))
	}
	switch status.Code(err) {
	case codes.Unavailable:
		if method.Name() != "PullImage" { // there may be such a registry elsewhere
			c.Errorf("%s: %v", method.Name(), err)
		}
	case codes.Internal:
		if method.Name() != "UpdateContainerResources" { // what the kernel says of limits is nobody's fault but theirs
			c.Errorf("%s: %v\n\t%.600v", method.Name(), err, request)
		}
	case codes.OK, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists, codes.Unimplemented:
	default:
		c.Errorf("%s after %v: %v\n\t%.600v", method.Name(), time.Since(begun).Round(time.Millisecond), err, request)
	}
}

// blot sets one field at random, at whatever depth.
func blot(rng *rand.Rand, m protoreflect.Message, words []string) {
	fields := m.Descriptor().Fields()
	f := fields.Get(rng.IntN(fields.Len()))
	switch {
	case f.IsMap():
		m.Mutable(f).Map().Set(scribbled(rng, f.MapKey(), words).MapKey(), scribbled(rng, f.MapValue(), words))
	case f.IsList() && f.Message() == nil:
		m.Mutable(f).List().Append(scribbled(rng, f, words))
	case f.IsList():
		if list := m.Mutable(f).List(); list.Len() > 0 {
			blot(rng, list.Get(rng.IntN(list.Len())).Message(), words)
		} else {
			scribble(rng, list.AppendMutable().Message(), words, 1)
		}
	case f.Message() != nil:
		blot(rng, m.Mutable(f).Message(), words)
	default:
		m.Set(f, scribbled(rng, f, words))
	}
}

// scribble sets fields at random.
func scribble(rng *rand.Rand, m protoreflect.Message, words []string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if rng.IntN(3) == 0 || depth > 5 {
			continue
		}
		switch {
		case f.IsMap():
			for range rng.IntN(3) {
				m.Mutable(f).Map().Set(scribbled(rng, f.MapKey(), words).MapKey(), scribbled(rng, f.MapValue(), words))
			}
		case f.IsList():
			list := m.Mutable(f).List()
			for range rng.IntN(3) {
				if f.Message() == nil {
					list.Append(scribbled(rng, f, words))
					continue
				}
				scribble(rng, list.AppendMutable().Message(), words, depth+1)
			}
		case f.Message() != nil:
			scribble(rng, m.Mutable(f).Message(), words, depth+1)
		default:
			m.Set(f, scribbled(rng, f, words))
		}
	}
}

func scribbled(rng *rand.Rand, f protoreflect.FieldDescriptor, words []string) protoreflect.Value {
	numbers := []int64{0, 0, 1, -1, 2, 1000, 65535, 65536, 1 << 31, 1<<63 - 1, -1 << 63}
	n, word := numbers[rng.IntN(len(numbers))], words[rng.IntN(len(words))]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rng.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rng.IntN(5) - 1)) //nolint:gosec // small
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n)) //nolint:gosec // cut as it may be
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n)) //nolint:gosec // likewise
	case protoreflect.Int64Kind:
		if f.Name() == "timeout" {
			n = min(n, 1)
		}
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n)) //nolint:gosec // likewise
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(word))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(word)
	}
	panic(f.Kind())
}
