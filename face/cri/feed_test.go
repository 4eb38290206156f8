package cri_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/spec"
)

// events opens a client's stream: it misses nothing from then on.
func (w *world) events() api.RuntimeService_GetContainerEventsClient {
	w.Helper()
	s, err := w.dial().GetContainerEvents(w.Context(), &api.GetEventsRequest{})
	w.must(err)
	_, err = s.Header()
	w.must(err)
	return s
}

func (w *world) next(s api.RuntimeService_GetContainerEventsClient) *api.ContainerEventResponse {
	w.Helper()
	e, err := s.Recv()
	w.must(err)
	return e
}

// nextOf is the next event of that kind: what happened just before the stream
// was opened may still come.
func (w *world) nextOf(s api.RuntimeService_GetContainerEventsClient, kind api.ContainerEventType) *api.ContainerEventResponse {
	w.Helper()
	for {
		if e := w.next(s); e.GetContainerEventType() == kind {
			return e
		}
	}
}

func TestEvents(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	one, two := w.events(), w.events()
	pod, ids := w.run("a", "m")
	for _, call := range []error{
		second(w.client.StartContainer(ctx, &api.StartContainerRequest{ContainerId: ids[0]})),
		second(w.client.StopContainer(ctx, &api.StopContainerRequest{ContainerId: ids[0]})),
		second(w.client.RemoveContainer(ctx, &api.RemoveContainerRequest{ContainerId: ids[0]})),
		second(w.client.StopPodSandbox(ctx, &api.StopPodSandboxRequest{PodSandboxId: pod})),
		second(w.client.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{PodSandboxId: pod})),
	} {
		w.must(call)
	}
	for _, s := range []api.RuntimeService_GetContainerEventsClient{one, two} {
		for i, want := range []struct {
			id   string
			what api.ContainerEventType
		}{
			{pod, api.ContainerEventType_CONTAINER_CREATED_EVENT},
			{pod, api.ContainerEventType_CONTAINER_STARTED_EVENT},
			{ids[0], api.ContainerEventType_CONTAINER_CREATED_EVENT},
			{ids[0], api.ContainerEventType_CONTAINER_STARTED_EVENT},
			{ids[0], api.ContainerEventType_CONTAINER_STOPPED_EVENT},
			{ids[0], api.ContainerEventType_CONTAINER_DELETED_EVENT},
			{pod, api.ContainerEventType_CONTAINER_STOPPED_EVENT},
			{pod, api.ContainerEventType_CONTAINER_DELETED_EVENT},
		} {
			e := w.next(s)
			if e.GetContainerId() != want.id || e.GetContainerEventType() != want.what || time.Since(time.Unix(0, e.GetCreatedAt())) > time.Minute {
				t.Errorf("event %d: %v", i, e)
			}
			// Kubelet knows the pod by its metadata, also when it has gone.
			if is := e.GetPodSandboxStatus(); is.GetId() != pod || is.GetMetadata().GetUid() != "a" {
				t.Errorf("event %d, of pod %v", i, is)
			}
		}
	}
}

// An event comes with all containers of its pod, and of no other.
func TestEventsCarryTheWholePod(t *testing.T) {
	w := newWorld(t)
	w.run("b", "x")
	_, ids := w.run("a", "m", "n")
	s := w.events()
	_, err := w.client.StartContainer(t.Context(), &api.StartContainerRequest{ContainerId: ids[1]})
	w.must(err)
	e := w.nextOf(s, api.ContainerEventType_CONTAINER_STARTED_EVENT)
	for e.GetContainerId() != ids[1] {
		e = w.nextOf(s, api.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	if len(e.GetContainersStatuses()) != 2 || e.GetPodSandboxStatus().GetState() != api.PodSandboxState_SANDBOX_READY {
		t.Error(e)
	}
	for _, c := range e.GetContainersStatuses() {
		if (c.GetId() == ids[1]) != (c.GetState() == api.ContainerState_CONTAINER_RUNNING) {
			t.Error(c)
		}
	}
}

// A container that could not be started has ended: nobody has to look for that.
func TestEventsOfAStartThatFails(t *testing.T) {
	w := newWorld(t)
	pod, ids := w.run("a", "m")
	s := w.events()
	w.must(w.rooms.change(ids[0], "", func(c *spec.PodContainer) { c.State, c.Reason = spec.Stopped, "StartError" }))
	w.rooms.bus.Publish("pod", "start_failed", pod, map[string]string{"container": ids[0]})
	e := w.nextOf(s, api.ContainerEventType_CONTAINER_STOPPED_EVENT)
	if e.GetContainerId() != ids[0] || e.GetContainerEventType() != api.ContainerEventType_CONTAINER_STOPPED_EVENT ||
		e.GetPodSandboxStatus().GetId() != pod || e.GetPodSandboxStatus().GetState() != api.PodSandboxState_SANDBOX_READY {
		t.Error(e)
	}
	if all := e.GetContainersStatuses(); len(all) != 1 || all[0].GetReason() != "StartError" {
		t.Error(all)
	}
}

// Kubelet keeps the statuses that an event carries: one that is being deleted is
// not among them, though the node may still know of it.
func TestEventsOfADeletionLeaveItOut(t *testing.T) {
	w := newWorld(t)
	pod, ids := w.run("a", "m", "n")
	s := w.events()
	w.rooms.bus.Publish("container", "destroy", ids[0], map[string]string{"pod": pod})
	if all := w.nextOf(s, api.ContainerEventType_CONTAINER_DELETED_EVENT).GetContainersStatuses(); len(all) != 1 || all[0].GetId() != ids[1] {
		t.Error(all)
	}
}

// What is no pod's, and what only holds a pod's namespaces, is nobody's business.
func TestEventsOfOthers(t *testing.T) {
	w := newWorld(t)
	pod, _ := w.run("a")
	s := w.events()
	w.rooms.bus.Publish("container", "start", "native", nil)
	w.rooms.bus.Publish("container", "start", pod, map[string]string{"pod": pod})
	w.rooms.bus.Publish("container", "exec_create: x", "m", map[string]string{"pod": pod})
	w.rooms.bus.Publish("image", "pull", "i", nil)
	w.rooms.bus.Publish("pod", "stop", pod, nil)
	e := w.next(s)
	for e.GetContainerId() == pod && e.GetContainerEventType() != api.ContainerEventType_CONTAINER_STOPPED_EVENT { // of its run
		e = w.next(s)
	}
	if e.GetContainerId() != pod {
		t.Error(e)
	}
	// Of a pod that nobody has been told of, the event itself says what it was.
	w.rooms.bus.Publish("pod", "remove", "unknown", map[string]string{"name": "n", "namespace": "s", "uid": "u", "attempt": "4"})
	is := w.next(s).GetPodSandboxStatus()
	if m := is.GetMetadata(); m.GetName() != "n" || m.GetNamespace() != "s" || m.GetUid() != "u" || m.GetAttempt() != 4 || is.GetState() != api.PodSandboxState_SANDBOX_NOTREADY {
		t.Error(is)
	}
}

// From what happens to who hears of it are less than 5 ms, where the machine has
// time for it: nobody waits for a turn of something.
func TestEventsComeAtOnce(t *testing.T) {
	w := newWorld(t)
	pod, _ := w.run("a", "m")
	s := w.events()
	quick := 0
	for range 200 {
		w.rooms.bus.Publish("pod", "start", pod, nil)
		e := w.next(s)
		if time.Since(time.Unix(0, e.GetCreatedAt())) < 5*time.Millisecond {
			quick++
		}
	}
	if quick < 20 {
		t.Errorf("only %d of 200 events came within 5 ms", quick)
	}
}

// A client that takes nothing is left behind and told so; nobody waits for it.
func TestSlowClients(t *testing.T) {
	w := newWorld(t)
	pod, _ := w.run("a", "m", "n", "o")
	slow, quick := w.events(), w.events()
	const many = 8000 // more than the buffers of the server and of the connection hold
	for range many {
		w.rooms.bus.Publish("pod", "start", pod, nil)
		w.next(quick)
	}
	for taken := 0; ; taken++ {
		_, err := slow.Recv()
		if err == nil {
			continue
		}
		if status.Code(err) != codes.ResourceExhausted || taken >= many {
			t.Errorf("the slow one got %d, and then %v", taken, err)
		}
		return
	}
}

// slowStream is a client that takes an event when it is let.
type slowStream struct {
	api.RuntimeService_GetContainerEventsServer
	ctx    context.Context //nolint:containedctx // as a stream of gRPC has it
	joined chan struct{}
	let    chan struct{}
	taken  atomic.Int32
}

func (s *slowStream) Context() context.Context     { return s.ctx }
func (s *slowStream) SendHeader(metadata.MD) error { close(s.joined); return nil }
func (s *slowStream) Send(*api.ContainerEventResponse) error {
	select {
	case <-s.let:
		s.taken.Add(1)
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// An answer comes after its events, so that kubelet does not take what it knew
// before for what is. A client that takes nothing is not waited for for long,
// and after that not at all.
func TestAnswersComeAfterTheirEvents(t *testing.T) {
	w := newWorld(t)
	w.events() // with one that keeps pace, nothing of the run is still to come
	_, ids := w.run("a", "m", "n", "o", "p", "q", "r", "s")
	s := &slowStream{ctx: t.Context(), joined: make(chan struct{}), let: make(chan struct{}, 1)}
	go func() { _ = w.server.GetContainerEvents(nil, s) }()
	<-s.joined
	start := func(id string) time.Duration {
		began := time.Now()
		_, err := w.server.StartContainer(t.Context(), &api.StartContainerRequest{ContainerId: id})
		w.must(err)
		return time.Since(began)
	}
	s.let <- struct{}{}
	start(ids[0])
	if s.taken.Load() != 1 {
		t.Error("the answer came before the event")
	}
	if took := start(ids[1]); took < 150*time.Millisecond || took > 30*time.Second {
		t.Errorf("a client that takes nothing held up the answer for %s", took)
	}
	least := time.Hour
	for _, id := range ids[2:] {
		least = min(least, start(id))
	}
	if least > 150*time.Millisecond {
		t.Errorf("and each of the next ones for %s at least", least)
	}
}
