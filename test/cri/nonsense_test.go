package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/cri/images"
	"berth/test/machine"
)

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
