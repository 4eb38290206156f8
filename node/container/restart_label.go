package container

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/spec"
)

// The labels by which clients say that a container is to be kept running.
const (
	restartStatus  = "containerd.io/restart.status" // running, stopped; without it nothing is done
	restartPolicy  = "containerd.io/restart.policy" // always when ""
	restartCount   = "containerd.io/restart.count"  // restarts so far
	restartLog     = "containerd.io/restart.loguri" // where the output of a task goes that we make
	restartStopped = "containerd.io/restart.explicitly-stopped"
)

// restartWish is the policy that the labels stand for. One that nobody
// understands is none.
func restartWish(labels map[string]string) spec.RestartPolicy {
	never := spec.RestartPolicy{Name: "no"}
	if labels[restartStatus] != "running" {
		return never
	}
	name, most, counted := strings.Cut(orElse(labels[restartPolicy], "always"), ":")
	policy := spec.RestartPolicy{Name: name}
	if counted {
		retries, err := strconv.Atoi(most)
		if err != nil {
			return never
		}
		policy.MaxRetries = retries
	}
	if checkRestart(policy, false) != nil {
		return never
	}
	return policy
}

func explicitlyStopped(labels map[string]string) bool {
	stopped, err := strconv.ParseBool(labels[restartStopped])
	return err == nil && stopped
}

// relabel writes into the labels, where clients read it, what became of a
// container that is kept running.
func relabel(g *spec.Given, c *spec.Container) *spec.Given {
	if g.Labels[restartStatus] == "" {
		return g
	}
	stopped, count := c.State.StoppedBy != "", strconv.Itoa(c.State.RestartCount)
	same := stopped == explicitlyStopped(g.Labels) && count == orElse(g.Labels[restartCount], "0")
	if same {
		return g
	}
	next := copyGiven(g)
	next.Labels[restartStopped], next.Labels[restartCount] = strconv.FormatBool(stopped), count
	return &next
}

// clientPause is how long a container that its client works on stays down: who
// kills a task or deletes it is about to take the container away or to start
// it, and is not to find another task in its place.
const clientPause = 3 * time.Second

// heed does what changed labels want of the container. op is held.
func (s *Set) heed(ctx context.Context, c *container, old, now *spec.Container) error {
	t := c.task.Load()
	switch {
	case now.Config.Labels[restartStatus] == "stopped" && old.Config.Labels[restartStatus] != "stopped" && alive(now.State.Status):
		return s.send(ctx, c, syscall.SIGKILL)
	case now.State.Status == spec.Restarting && !wanted(now):
		c.callOff()
	case now.State.Status == spec.Stopped && t != nil && t.Exit != nil && !wanted(old) && wanted(now):
		c.change(func(c *spec.Container) { c.State.Status = spec.Restarting })
		s.restartIn(c, backoff.Wait(0))
	default:
		return nil
	}
	s.db.note(c)
	return nil
}

// wanted says whether the labels bring back a container that has ended.
func wanted(c *spec.Container) bool {
	ended := !c.State.ExitUnknown && c.State.ExitCode == 0
	return c.State.StoppedBy == "" && wants(c.Config.Restart, ended, c.State.RestartCount)
}

// postpone gives the client time that is at work on a container which waits to
// be started again. op is held.
func (s *Set) postpone(c *container) {
	c.mu.Lock()
	waits := c.retry != nil && c.retry.Stop()
	c.mu.Unlock()
	if waits {
		s.restartIn(c, clientPause)
	}
}

// again is the request of the task that takes the place of an ended one. A
// client that is gone reads no FIFO any more: the output goes where the label
// says.
func (c *container) again() TaskRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var req TaskRequest
	if c.request != nil {
		req = *c.request
	}
	view := c.view.Load()
	req.Terminal, req.Restore = view.Config.TTY, ""
	if uri := view.Config.Labels[restartLog]; uri != "" {
		req.Streams = Streams{Stdout: uri, Stderr: uri}
	}
	req.Streams.Stdin = ""
	for _, stream := range []*string{&req.Streams.Stdout, &req.Streams.Stderr} {
		if strings.HasPrefix(*stream, "/") || strings.HasPrefix(*stream, "fifo:") {
			*stream = ""
		}
	}
	return req
}
