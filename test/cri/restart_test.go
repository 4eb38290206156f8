package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/machine"
)

// visitors ask a node all the time, over a connection that they keep and over
// new ones, and read its events as kubelet does: when the stream ends they list
// and ask again, at once.
type visitors struct {
	*caller
	stop context.CancelFunc
	done sync.WaitGroup

	answers, attempts atomic.Int64
	mu                sync.Mutex
	failures          []error
	named             map[string]bool // of pods of which an event has come
}

func (n *node) visited(t *testing.T) *visitors {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	v := &visitors{caller: n.caller(t), stop: cancel, named: map[string]bool{}}
	v.done.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			v.note(ctx, v.ask(ctx))
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	v.done.Go(func() {
		for ctx.Err() == nil {
			fresh := n.caller(t)
			_, err := fresh.Version(ctx, &api.VersionRequest{})
			_ = fresh.conn.Close()
			v.note(ctx, err)
		}
	})
	v.done.Go(func() { v.read(ctx) })
	t.Cleanup(v.leave)
	return v
}

func (v *visitors) leave() {
	v.stop()
	v.done.Wait()
}

func (v *visitors) ask(ctx context.Context) error {
	_, err := v.ListPodSandbox(ctx, &api.ListPodSandboxRequest{})
	return err
}

func (v *visitors) note(ctx context.Context, err error) {
	switch {
	case err == nil:
		v.answers.Add(1)
	case ctx.Err() == nil:
		v.mu.Lock()
		defer v.mu.Unlock()
		v.failures = append(v.failures, err)
	}
}

func (v *visitors) read(ctx context.Context) {
	for ctx.Err() == nil {
		stream, err := v.GetContainerEvents(ctx, &api.GetEventsRequest{})
		for err == nil {
			var event *api.ContainerEventResponse
			if event, err = stream.Recv(); err == nil {
				v.mu.Lock()
				v.named[event.GetPodSandboxStatus().GetMetadata().GetName()] = true
				v.mu.Unlock()
			}
		}
		if ctx.Err() == nil {
			v.attempts.Add(1)
			v.note(ctx, v.ask(ctx))
		}
	}
}

// hears waits until an event of a new pod comes.
func (v *visitors) hears(t *testing.T, name string) {
	t.Helper()
	machine.Until(t, "events are told", func() error {
		if pod, err := v.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Config: v.podConfig(name)}); err == nil {
			_, _ = v.RemovePodSandbox(t.Context(), &api.RemovePodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if !v.named[name] {
			return errors.New("there is none")
		}
		return nil
	})
}

// served waits until they have been answered some more.
func (v *visitors) served(t *testing.T) {
	t.Helper()
	before := v.answers.Load()
	machine.Until(t, "calls are answered", func() error {
		if v.answers.Load() < before+20 {
			return errors.New("they are not")
		}
		return nil
	})
}

// turnedAway are failures other than of calls which a killed node was about to
// answer.
func (v *visitors) turnedAway(killed bool) (all []error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, err := range v.failures {
		if underway := status.Code(err) == codes.Unavailable && !strings.Contains(err.Error(), "dial"); !killed || !underway {
			all = append(all, err)
		}
	}
	v.failures = nil
	return all
}

// Who comes while the node is restarted is answered by the next one, and a
// stream of events costs its reader one attempt, of which kubelet has five.
func TestRestartTurnsNobodyAway(t *testing.T) {
	n := newNode(t, "", "")
	v := n.visited(t)
	v.hears(t, "first")
	for _, c := range []struct {
		how    string
		end    func()
		killed bool
	}{
		{"killed", n.Kill, true},
		{"told-to-end", func() { n.End(t) }, false},
		{"killed-after-its-keeper", func() { n.replaceKeeper(t); n.Kill() }, true},
	} {
		t.Run(c.how, func(t *testing.T) {
			v.served(t)
			attempts := v.attempts.Load()
			c.end()
			n.Start(t)
			v.served(t)
			v.hears(t, c.how)
			if away := v.turnedAway(c.killed); len(away) > 0 {
				t.Errorf("%d were turned away: %v", len(away), errors.Join(away[:min(len(away), 5)]...))
			}
			if made := v.attempts.Load() - attempts; made != 1 {
				t.Errorf("the stream was asked for %d times", made)
			}
		})
	}
	v.leave()

	n.Signal(t, syscall.SIGINT)
	<-n.Ended()
	if _, err := net.Dial("unix", n.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after ctrl-C: %v", err)
	}
	n.Start(t)
}

// replaceKeeper kills the keeper and waits until another has been given all.
func (n *node) replaceKeeper(t *testing.T) {
	t.Helper()
	pid := func() string { return n.must(t, "berth", "info", "--format", "{{.KeeperPid}}") }
	before := pid()
	n.KillKeeper(t)
	machine.Until(t, "there is another keeper", func() error {
		if now := pid(); now == before || now == "0" {
			return fmt.Errorf("it is %s, was %s", now, before)
		}
		return nil
	})
}
