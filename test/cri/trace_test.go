package cri

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/machine"
)

// A client that traces finds each of its calls as one span under its own, and
// under that the steps down to the runtime.
func TestACallIsOneSpanWithItsSteps(t *testing.T) {
	collected := newSpans(t)
	n := newNode(t, "", fmt.Sprintf("otlp = %q\n", collected.url))
	n.must(t, "crictl", "pull", busybox)
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	machine.Must(t, err)
	defer conn.Close()
	client := api.NewRuntimeServiceClient(conn)
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+traceID+"-"+parent+"-01")

	config := &api.PodSandboxConfig{
		Metadata: &api.PodSandboxMetadata{Name: "traced", Namespace: "shop", Uid: "uid"}, LogDirectory: n.Dir, Linux: &api.LinuxPodSandboxConfig{},
	}
	made, err := client.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Config: config})
	machine.Must(t, err)
	created, err := client.CreateContainer(ctx, &api.CreateContainerRequest{PodSandboxId: made.GetPodSandboxId(), SandboxConfig: config, Config: &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: "app"}, Image: &api.ImageSpec{Image: busybox}, Command: []string{"sleep", "1000"}, Linux: &api.LinuxContainerConfig{},
	}})
	machine.Must(t, err)
	_, err = client.StartContainer(ctx, &api.StartContainerRequest{ContainerId: created.GetContainerId()})
	machine.Must(t, err)

	for call, steps := range map[string][]string{
		"RunPodSandbox":   {"run pod", "make kernel namespaces", "mount shm", "attach pod to its network", "pause process", "runc run"},
		"CreateContainer": {"create container app", "resolve image", "root file system", "mount root", "make the spec"},
		"StartContainer":  {"start container app", "run task", "runc run"},
	} {
		machine.Until(t, call+" and its steps are collected", func() error {
			calls, below := collected.under(traceID, parent, "runtime.v1.RuntimeService/"+call)
			if calls != 1 {
				return fmt.Errorf("%d spans of the call", calls)
			}
			for _, step := range steps {
				if !slices.Contains(below, step) {
					return fmt.Errorf("no step %q in %q", step, below)
				}
			}
			return nil
		})
	}
}

// under counts the spans of a trace whose parent and name are these, and names
// those that lie below them, however deep.
func (s *spans) under(traceID, parent, name string) (calls int, below []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	children := map[string][]*trace.Span{}
	for _, span := range s.all {
		if hex.EncodeToString(span.GetTraceId()) == traceID {
			of := hex.EncodeToString(span.GetParentSpanId())
			children[of] = append(children[of], span)
		}
	}
	var walk func(of string)
	walk = func(of string) {
		for _, span := range children[of] {
			below = append(below, span.GetName())
			walk(hex.EncodeToString(span.GetSpanId()))
		}
	}
	for _, span := range children[parent] {
		if strings.TrimPrefix(span.GetName(), "/") == name && span.GetKind() == trace.Span_SPAN_KIND_SERVER {
			calls++
			walk(hex.EncodeToString(span.GetSpanId()))
		}
	}
	return calls, below
}
