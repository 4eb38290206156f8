package cri

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/cri/images"
	"berth/test/machine"
)

// listener keeps the events of a node as a client hears them.
type listener struct {
	mu     sync.Mutex
	events map[string][]*api.ContainerEventResponse // by the id that they are about
	ended  chan error
}

func (c *caller) listen() *listener {
	c.Helper()
	l := &listener{events: map[string][]*api.ContainerEventResponse{}, ended: make(chan error, 1)}
	stream, err := c.GetContainerEvents(c.Context(), &api.GetEventsRequest{})
	machine.Must(c, err)
	_, err = stream.Header() // from here on nothing is missed
	machine.Must(c, err)
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				l.ended <- err
				return
			}
			l.mu.Lock()
			l.events[e.GetContainerId()] = append(l.events[e.GetContainerId()], e)
			l.mu.Unlock()
		}
	}()
	return l
}

// told are the kinds of the events about one id, in their order.
func (l *listener) told(id string) (kinds []api.ContainerEventType) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events[id] {
		kinds = append(kinds, e.GetContainerEventType())
	}
	return kinds
}

// whole is what is told of whatever comes and goes.
var whole = []api.ContainerEventType{
	api.ContainerEventType_CONTAINER_CREATED_EVENT, api.ContainerEventType_CONTAINER_STARTED_EVENT,
	api.ContainerEventType_CONTAINER_STOPPED_EVENT, api.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// Pods and containers that come and go side by side, each ending at once: no
// event is lost, doubled or out of order, and whoever looks meanwhile, or reads
// what comes with an event, sees each with the exit code that it had.
func TestChurn(t *testing.T) {
	n := newNode(t, "", "")
	c := n.caller(t)
	c.pull(images.Busybox)
	l := c.listen()
	var mu sync.Mutex
	codes := map[string]int32{} // that containers are to end with
	check := func(where string, s *api.ContainerStatus) {
		mu.Lock()
		want, known := codes[s.GetMetadata().GetName()]
		mu.Unlock()
		if s.GetState() == api.ContainerState_CONTAINER_EXITED && known && s.GetExitCode() != want {
			t.Errorf("%s: container %s ended with %d (%s %s), want %d", where, s.GetMetadata().GetName(), s.GetExitCode(), s.GetReason(), s.GetMessage(), want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var looking, working sync.WaitGroup
	looking.Go(func() {
		for ctx.Err() == nil {
			pods, err := c.ListPodSandbox(ctx, &api.ListPodSandboxRequest{})
			for _, p := range pods.GetItems() {
				if is, err := c.PodSandboxStatus(ctx, &api.PodSandboxStatusRequest{PodSandboxId: p.GetId()}); err == nil {
					for _, s := range is.GetContainersStatuses() {
						check("status", s)
					}
				}
			}
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for w := range 6 {
		working.Go(func() {
			for i := range 4 {
				n.comeAndGo(t, c, fmt.Sprint("pod", w, "-", i), func(name string, code int32) {
					mu.Lock()
					defer mu.Unlock()
					codes[name] = code
				}, l)
			}
		})
	}
	working.Wait()
	cancel()
	looking.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, events := range l.events {
		for _, e := range events {
			for _, s := range e.GetContainersStatuses() {
				check(e.GetContainerEventType().String(), s)
			}
		}
	}
	if len(codes) != 72 || len(l.events) != 72+24 {
		t.Errorf("%d containers, events of %d", len(codes), len(l.events))
	}
}

// comeAndGo makes a pod with three containers that end at once, and takes all of
// it away: some by themselves, some with the pod.
func (n *node) comeAndGo(t *testing.T, c *caller, name string, expect func(name string, code int32), l *listener) {
	pod, err := c.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Config: c.podConfig(name)})
	if err != nil {
		t.Error(err)
		return
	}
	ids := []string{pod.GetPodSandboxId()}
	for i := range 3 {
		config := c.config(fmt.Sprint(name, "-", i), images.Busybox)
		config.Command = []string{"sh", "-c", fmt.Sprint("exit ", 3+i)}
		expect(config.GetMetadata().GetName(), int32(3+i))
		id, err := c.create(ids[0], config)
		if err == nil {
			_, err = c.StartContainer(t.Context(), &api.StartContainerRequest{ContainerId: id})
		}
		if err != nil {
			t.Error(err)
			return
		}
		ids = append(ids, id)
	}
	machine.Until(t, "they have ended", func() error {
		for _, id := range ids[1:] {
			if told := l.told(id); len(told) < 3 {
				return fmt.Errorf("%s: %v", id, told)
			}
		}
		return nil
	})
	if _, err := c.RemoveContainer(t.Context(), &api.RemoveContainerRequest{ContainerId: ids[1]}); err != nil {
		t.Error(err)
	}
	if _, err := c.StopPodSandbox(t.Context(), &api.StopPodSandboxRequest{PodSandboxId: ids[0]}); err != nil {
		t.Error(err)
	}
	if _, err := c.RemovePodSandbox(t.Context(), &api.RemovePodSandboxRequest{PodSandboxId: ids[0]}); err != nil {
		t.Error(err)
	}
	machine.Until(t, "they are told of to the end", func() error {
		for _, id := range ids {
			if told := l.told(id); !slices.Equal(told, whole) {
				return fmt.Errorf("%s: %v", id, told)
			}
		}
		return nil
	})
}

// A node that is told to end while calls are under way that take for ever does
// so soon; what runs goes on, and the next node does what is asked again.
func TestToldToEndInTheMiddle(t *testing.T) {
	n := newNode(t, "", "")
	c := n.caller(t)
	c.pull(images.Busybox)
	pod := c.pod("calls")
	config := c.config("stubborn", images.Busybox)
	config.Command = []string{"sh", "-c", "trap '' TERM; while :; do sleep 1000; done"}
	id := c.up(pod, config)
	l := c.listen()
	var calls sync.WaitGroup
	for name, call := range map[string]func() error{
		"stop": func() error {
			_, err := c.StopContainer(t.Context(), &api.StopContainerRequest{ContainerId: id, Timeout: 3600})
			return err
		},
		"exec": func() error {
			_, err := c.ExecSync(t.Context(), &api.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "3600"}})
			return err
		},
	} {
		calls.Go(func() {
			if call() == nil {
				t.Errorf("%s is done, it says", name)
			}
		})
	}
	calls.Go(func() { // and those that are soon done, as many as there is time for
		for i := range 1000 {
			config := c.config(fmt.Sprint("quick", i), images.Busybox)
			config.Command = []string{"true"}
			made, err := c.create(pod, config)
			if err == nil {
				_, err = c.StartContainer(t.Context(), &api.StartContainerRequest{ContainerId: made})
			}
			if err != nil {
				return
			}
		}
	})
	<-time.After(500 * time.Millisecond)
	begun := time.Now()
	n.End(t)
	t.Logf("it took %v to end", time.Since(begun).Round(time.Millisecond))
	calls.Wait()
	if err := <-l.ended; err == nil {
		t.Error("the events end without a reason")
	}
	n.Start(t)
	c = n.caller(t)
	if is := c.containerStatus(id); is.GetState() != api.ContainerState_CONTAINER_RUNNING {
		t.Errorf("it is %v", is)
	}
	answer, err := c.ListContainers(t.Context(), &api.ListContainersRequest{})
	machine.Must(t, err)
	for _, each := range answer.GetContainers() {
		is := c.containerStatus(each.GetId())
		if is.GetState() == api.ContainerState_CONTAINER_EXITED && is.GetExitCode() != 0 {
			t.Errorf("%s ended with %d, %s: %s", is.GetMetadata().GetName(), is.GetExitCode(), is.GetReason(), is.GetMessage())
		}
	}
	_, err = c.StopContainer(t.Context(), &api.StopContainerRequest{ContainerId: id, Timeout: 0})
	machine.Must(t, err)
	if is := c.containerStatus(id); is.GetState() != api.ContainerState_CONTAINER_EXITED || is.GetExitCode() != 137 {
		t.Errorf("it is %v", is)
	}
}
