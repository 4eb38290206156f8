package metrics_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/face/cri/metrics"
)

// The lists of many pods, read anew each time, and as they are put on the wire.
func BenchmarkLists(b *testing.B) {
	for _, n := range []int{50, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { lists(b, realPods(b, n)) })
	}
}

func lists(b *testing.B, pods *fakePods) {
	for name, call := range map[string]func() (proto.Message, error){
		"ContainerStats": func() (proto.Message, error) {
			return newService(b, pods).ListContainerStats(b.Context(), &cri.ListContainerStatsRequest{})
		},
		"PodStats": func() (proto.Message, error) {
			return newService(b, pods).ListPodSandboxStats(b.Context(), &cri.ListPodSandboxStatsRequest{})
		},
		"PodMetrics": func() (proto.Message, error) {
			return newService(b, pods).ListPodSandboxMetrics(b.Context(), &cri.ListPodSandboxMetricsRequest{})
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := call(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"Encode", func(b *testing.B) {
			m, err := call()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if text, err := proto.Marshal(m); err != nil {
					b.Fatal(err)
				} else {
					b.SetBytes(int64(len(text)))
				}
			}
		})
	}
	b.Run("PodMetricsKnown", func(b *testing.B) {
		client := overSocket(b, newService(b, pods))
		for b.Loop() {
			if _, err := client.ListPodSandboxMetrics(b.Context(), &cri.ListPodSandboxMetricsRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// overSocket asks a service as kubelet does.
func overSocket(tb testing.TB, s *metrics.Service) cri.RuntimeServiceClient {
	tb.Helper()
	socket := filepath.Join(tb.TempDir(), "s")
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxSendMsgSize(64 << 20))
	cri.RegisterRuntimeServiceServer(server, &served{meter: s})
	go func() { _ = server.Serve(listener) }()
	tb.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return cri.NewRuntimeServiceClient(conn)
}

// served are the calls of a runtime that are measured.
type served struct {
	cri.UnimplementedRuntimeServiceServer
	meter *metrics.Service
}

func (s *served) ListPodSandboxMetrics(ctx context.Context, r *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	return s.meter.ListPodSandboxMetrics(ctx, r)
}
