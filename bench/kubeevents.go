package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podEvents kills the process of one container after the other and takes the
// time until a client of GetContainerEvents knows that it has ended.
func (b *bench) podEvents(ctx context.Context, c *cluster) error {
	const n, atOnce = 34, 5
	workloads, _, _, err := c.many(ctx, n, atOnce)
	if err != nil {
		return err
	}
	following, end := context.WithCancel(ctx)
	defer end()
	events, err := c.GetContainerEvents(following, &cri.GetEventsRequest{})
	if err != nil {
		return err
	}
	// What it is told of first, once the stream stands, is no sample.
	for i, w := range workloads {
		took, err := c.endTold(ctx, events, w)
		if err != nil {
			return err
		}
		if i > 0 {
			b.results.add("cri-event", c.column, milliseconds(took))
		}
	}
	end()
	err = each(n, atOnce, func(i int) error { return c.down(ctx, workloads[i]) })
	c.taken("", "", results{})
	return err
}

// endTold kills a workload's process and waits for the event.
func (c *cluster) endTold(ctx context.Context, events cri.RuntimeService_GetContainerEventsClient, w workload) (time.Duration, error) {
	pid, err := c.process(ctx, w)
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, 20*time.Millisecond); err != nil { // what goes on for the one before
		return 0, err
	}
	began := time.Now()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return 0, fmt.Errorf("kill process %d: %w", pid, err)
	}
	for {
		event, err := events.Recv()
		if err != nil {
			return 0, fmt.Errorf("events: %w", err)
		}
		if event.GetContainerId() == w.container && event.GetContainerEventType() == cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
			return time.Since(began), nil
		}
		if time.Since(began) > time.Minute {
			return 0, errors.New("no event tells of the end of a container")
		}
	}
}
