package cri

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/spec"
)

// waiting is how many events a client may be behind. What it has not taken then
// it will not get: the end of its stream tells it to list anew.
const waiting = 4096

// feed carries what happens to pods from the bus to the clients. The bus waits
// for nothing: it leaves the event in a queue, from which Run makes the message
// (once, for all) and puts it into each client's buffer. One that takes nothing
// holds up nobody.
type feed struct {
	more chan struct{} // holds a token when there is something in the queue

	mu      sync.Mutex
	queue   []told
	clients map[*client]bool // whether it keeps pace

	// last is what pods looked like when they were last told of, for those that
	// have gone. Only Run uses it.
	last map[string]*cri.PodSandboxStatus
}

// told is an event, or a mark that follows those before it to each client,
// which gives itself to the mark when it has sent them.
type told struct {
	event spec.Event
	mark  chan<- *client
}

// client is one stream.
type client struct {
	events chan sent
	behind chan struct{} // closed when it has been left behind
}

// sent is what a client's stream gets, or a mark.
type sent struct {
	message *cri.ContainerEventResponse
	mark    chan<- *client
}

// patience is how long an answer waits for the events that belong to it.
const patience = 200 * time.Millisecond

func (f *feed) init() {
	f.more = make(chan struct{}, 1)
	f.clients, f.last = map[*client]bool{}, map[string]*cri.PodSandboxStatus{}
}

// kinds are the actions that clients hear of.
var kinds = map[string]map[string]cri.ContainerEventType{
	"container": {
		"create": cri.ContainerEventType_CONTAINER_CREATED_EVENT, "start": cri.ContainerEventType_CONTAINER_STARTED_EVENT,
		"die": cri.ContainerEventType_CONTAINER_STOPPED_EVENT, "destroy": cri.ContainerEventType_CONTAINER_DELETED_EVENT,
	},
	"pod": {
		"create": cri.ContainerEventType_CONTAINER_CREATED_EVENT, "start": cri.ContainerEventType_CONTAINER_STARTED_EVENT,
		"stop": cri.ContainerEventType_CONTAINER_STOPPED_EVENT, "remove": cri.ContainerEventType_CONTAINER_DELETED_EVENT,
		// A container that could not be started has ended: it is told of as such.
		"start_failed": cri.ContainerEventType_CONTAINER_STOPPED_EVENT,
	},
}

// Tell takes an event of the bus. It waits for nothing.
func (s *Server) Tell(e spec.Event) {
	if _, known := kinds[e.Type][e.Action]; !known || podOf(e) == "" || e.ID == podOf(e) && e.Type == "container" {
		return // not of pods, or of a process that only holds a pod's namespaces
	}
	f := &s.feed
	f.mu.Lock()
	f.queue = append(f.queue, told{event: e})
	f.mu.Unlock()
	f.wake()
}

func (f *feed) wake() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// settle waits until the clients that keep pace have been sent all that has
// happened. An answer comes after its events by this: kubelet, which goes by
// events, would else take what it knows from before for what is, and start a
// container twice. One that takes nothing is waited for once, and not for long.
func (f *feed) settle(ctx context.Context) {
	f.mu.Lock()
	waitFor := map[*client]bool{}
	for c, keepsPace := range f.clients {
		if keepsPace {
			waitFor[c] = true
		}
	}
	if len(waitFor) == 0 {
		f.mu.Unlock()
		return
	}
	mark := make(chan *client, len(f.clients))
	f.queue = append(f.queue, told{mark: mark})
	f.mu.Unlock()
	f.wake()
	late := time.NewTimer(patience)
	defer late.Stop()
	for len(waitFor) > 0 {
		select {
		case c := <-mark:
			delete(waitFor, c)
		case <-ctx.Done():
			return
		case <-late.C:
			f.mu.Lock()
			defer f.mu.Unlock()
			for c := range waitFor {
				if _, there := f.clients[c]; there {
					f.clients[c] = false
				}
			}
			return
		}
	}
}

// Subscribers is how many clients hear of events now.
func (s *Server) Subscribers() int {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	return len(s.feed.clients)
}

// podOf is the id of the pod that an event is about.
func podOf(e spec.Event) string {
	if e.Type == "pod" {
		return e.ID
	}
	return e.Attributes["pod"]
}

// Run tells the clients what happens, until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	f := &s.feed
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.more:
		}
		f.mu.Lock()
		all := f.queue
		f.queue = nil
		f.mu.Unlock()
		for _, t := range all {
			if t.mark != nil {
				f.give(sent{mark: t.mark})
				continue
			}
			f.give(sent{message: s.message(t.event)})
		}
	}
}

// give puts a message into each client's buffer.
func (f *feed) give(m sent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.clients {
		select {
		case c.events <- m:
		default:
			if m.mark != nil {
				continue
			}
			delete(f.clients, c)
			close(c.behind)
		}
	}
}

// message is an event as clients get it: with the pod and all its containers as
// they are now, which is not before the event.
func (s *Server) message(e spec.Event) *cri.ContainerEventResponse {
	id := podOf(e)
	m := &cri.ContainerEventResponse{ContainerId: e.ID, ContainerEventType: kinds[e.Type][e.Action], CreatedAt: e.Time.UnixNano()}
	if e.Action == "start_failed" {
		m.ContainerId = e.Attributes["container"]
	}
	if pod, err := s.Pods.Pod(id); err == nil {
		m.PodSandboxStatus = podStatus(pod)
		s.feed.last[id] = m.PodSandboxStatus
	} else {
		m.PodSandboxStatus = s.feed.goneStatus(e)
	}
	m.ContainersStatuses = s.statusesOf(id)
	if m.GetContainerEventType() == cri.ContainerEventType_CONTAINER_DELETED_EVENT { // it may be on its way out
		m.ContainersStatuses = slices.DeleteFunc(m.GetContainersStatuses(), func(c *cri.ContainerStatus) bool { return c.GetId() == e.ID })
	}
	if e.Type == "pod" && e.Action == "remove" {
		delete(s.feed.last, id)
	}
	return m
}

// goneStatus is the status of a pod that has just been removed. Without one
// Kubelet would not know which pod it was.
func (f *feed) goneStatus(e spec.Event) *cri.PodSandboxStatus {
	status := &cri.PodSandboxStatus{Id: podOf(e), Metadata: &cri.PodSandboxMetadata{}}
	if last := f.last[podOf(e)]; last != nil {
		status.Metadata, status.CreatedAt, status.RuntimeHandler = last.GetMetadata(), last.GetCreatedAt(), last.GetRuntimeHandler()
		status.Labels, status.Annotations, status.Linux = last.GetLabels(), last.GetAnnotations(), last.GetLinux()
	} else if a := e.Attributes; e.Type == "pod" {
		attempt, _ := strconv.ParseUint(a["attempt"], 10, 32)
		status.Metadata = &cri.PodSandboxMetadata{Name: a["name"], Namespace: a["namespace"], Uid: a["uid"], Attempt: uint32(attempt)}
	}
	status.State = cri.PodSandboxState_SANDBOX_NOTREADY
	return status
}

// GetContainerEvents tells of each change of pods and their containers from the
// call on, until the client goes. ResourceExhausted: it took too long to take
// them; RuntimeService's lists say what is.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, stream cri.RuntimeService_GetContainerEventsServer) error {
	c := &client{events: make(chan sent, waiting), behind: make(chan struct{})}
	f := &s.feed
	f.mu.Lock()
	f.clients[c] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.clients, c)
		for len(c.events) > 0 { // nobody waits for one that has gone
			f.pass((<-c.events).mark, c)
		}
	}()
	// Whoever waits for the answer's header knows then that nothing is missed.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case m := <-c.events:
			if m.mark != nil {
				f.keepsPace(c)
				f.pass(m.mark, c)
				continue
			}
			if err := stream.Send(m.message); err != nil {
				return err
			}
		case <-c.behind:
			return errs.New(errs.Exhausted, "events: this client is %d behind, and gets no more: list what there is, and ask again", waiting)
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// pass says that c has come to a mark. Nobody may wait there any more.
func (f *feed) pass(mark chan<- *client, c *client) {
	select {
	case mark <- c:
	default:
	}
}

func (f *feed) keepsPace(c *client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, there := f.clients[c]; there {
		f.clients[c] = true
	}
}
