package metrics_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The lists of fifty pods, read anew each time, and as they are put on the wire.
func BenchmarkLists(b *testing.B) {
	pods := realPods(b, 50)
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
}
