package metrics_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// One by one there are the same pods as in the list, from both halves.
func TestEachPod(t *testing.T) {
	pods := realPods(t, 20)
	s := newService(t, pods)
	want := podMetrics(t, s).GetPodMetrics()
	each, err := s.PodSandboxMetrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(each) != 20 || len(want) != 20 {
		t.Fatalf("%d pods one by one, %d in the list", len(each), len(want))
	}
	for i, written := range each {
		text, err := proto.Marshal(written)
		if err != nil {
			t.Fatal(err)
		}
		var got cri.PodSandboxMetrics
		if err := proto.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if got.GetPodSandboxId() != want[i].GetPodSandboxId() || len(got.GetContainerMetrics()) != 1 || len(got.GetContainerMetrics()[0].GetMetrics()) < 50 {
			t.Fatalf("pod %d is %.300s", i, got.String())
		}
		c, wanted := got.GetContainerMetrics()[0], want[i].GetContainerMetrics()[0]
		if c.GetContainerId() != wanted.GetContainerId() || len(c.GetMetrics()) != len(wanted.GetMetrics()) || len(got.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("container %s of pod %d has %d metrics, in the list %d", c.GetContainerId(), i, len(c.GetMetrics()), len(wanted.GetMetrics()))
		}
	}
}
