// Command peer drives containerd for Berth's benchmarks, by containerd's own
// client, and prints what it measured as one JSON object: names to lists of
// milliseconds. It is a module of its own, so that Berth's go.mod stays free
// of containerd's client.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

const usage = `usage: peer SOCKET IMAGE RUNTIME once N | burst N AT-ONCE | lists N | clear N AT-ONCE | ready N | rmi
       peer snapshots DIR`

type peer struct {
	*client.Client
	image   client.Image
	runtime string

	mu    sync.Mutex
	times map[string][]float64
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 && args[0] == "snapshots" {
		return serveSnapshots(namespaces.WithNamespace(context.Background(), "bench"), args[1], os.Stdin, os.Stdout)
	}
	if len(args) < 4 {
		return fmt.Errorf("%s", usage)
	}
	number := func(i int) int {
		if i >= len(args) {
			return 0
		}
		n, _ := strconv.Atoi(args[i])
		return n
	}
	ctx := namespaces.WithNamespace(context.Background(), "bench")
	if args[3] == "ready" {
		if err := listening(args[0]); err != nil {
			return err
		}
	}
	c, err := client.New(args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	p := &peer{Client: c, runtime: args[2], times: map[string][]float64{}}
	if args[3] == "once" || args[3] == "burst" {
		if p.image, err = c.GetImage(ctx, args[1]); err != nil {
			return err
		}
	}
	switch args[3] {
	case "once":
		for i := range number(4) {
			if err := p.once(ctx, fmt.Sprintf("once-%d-%d", os.Getpid(), i)); err != nil {
				return err
			}
		}
	case "burst":
		start := time.Now()
		err = each(number(4), number(5), func(i int) error { return p.start(ctx, fmt.Sprintf("burst-%d", i)) })
		p.add("burst", start)
	case "lists":
		err = p.lists(ctx, number(4))
	case "clear":
		err = each(number(4), number(5), func(i int) error { return p.remove(ctx, fmt.Sprintf("burst-%d", i)) })
	case "ready":
		err = p.ready(ctx, number(4))
	case "rmi":
		err = p.rmi(ctx, args[1])
	default:
		return fmt.Errorf("%s", usage)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(p.times)
}

func (p *peer) add(name string, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.times[name] = append(p.times[name], float64(time.Since(since).Microseconds())/1000)
}

// create makes the container id and its task, ready to start.
func (p *peer) create(ctx context.Context, id string, args ...string) (client.Container, client.Task, error) {
	// Debian's crun knows OCI 1.0; later versions it refuses.
	version := func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Version = "1.0.2"
		return nil
	}
	c, err := p.NewContainer(ctx, id, client.WithImage(p.image), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, p.image),
		client.WithNewSpec(oci.WithImageConfig(p.image), oci.WithProcessArgs(args...), version),
		client.WithRuntime("io.containerd.runc.v2", &options.Options{BinaryName: p.runtime}))
	if err != nil {
		return nil, nil, err
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	return c, task, err
}

// once takes a container from nothing to /bin/true to nothing.
func (p *peer) once(ctx context.Context, id string) error {
	defer p.add("once", time.Now())
	ctx, done, err := p.WithLease(ctx)
	if err != nil {
		return err
	}
	defer done(ctx)
	c, t, err := p.create(ctx, id, "/bin/true")
	if err != nil {
		return err
	}
	exited, err := t.Wait(ctx)
	if err != nil {
		return err
	}
	if err := t.Start(ctx); err != nil {
		return err
	}
	<-exited
	if _, err := t.Delete(ctx); err != nil {
		return err
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}

func (p *peer) start(ctx context.Context, id string) error {
	_, task, err := p.create(ctx, id, "/bin/sleep", "1000000")
	if err != nil {
		return err
	}
	return task.Start(ctx)
}

func (p *peer) remove(ctx context.Context, id string) error {
	c, err := p.LoadContainer(ctx, id)
	if err != nil {
		return err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
		return err
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}

// lists asks n times for all containers with their state, and for what all
// of them use.
func (p *peer) lists(ctx context.Context, n int) error {
	for range n {
		start := time.Now()
		if _, err := p.TaskService().List(ctx, &tasks.ListTasksRequest{}); err != nil {
			return err
		}
		p.add("list", start)
		start = time.Now()
		if _, err := p.TaskService().Metrics(ctx, &tasks.MetricsRequest{}); err != nil {
			return err
		}
		p.add("stats", start)
	}
	return nil
}

// listening waits until somebody listens on the socket: grpc by itself would
// wait ever longer between its tries.
func listening(socket string) error {
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
	}
	return fmt.Errorf("nobody listens on %s", socket)
}

// ready waits for the first list with n running tasks, and says when it came,
// in milliseconds of Unix time: its asker started the daemon.
func (p *peer) ready(ctx context.Context, n int) error {
	var last error
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(time.Millisecond) {
		var list *tasks.ListTasksResponse
		if list, last = p.TaskService().List(ctx, &tasks.ListTasksRequest{}); last != nil {
			continue
		}
		running := 0
		for _, t := range list.Tasks {
			if t.Status == task.Status_RUNNING {
				running++
			}
		}
		if running >= n {
			p.times["ready"] = []float64{float64(time.Now().UnixMicro()) / 1000}
			return nil
		}
		last = fmt.Errorf("%d of %d tasks run", running, n)
	}
	return last
}

// each calls do for 0 to n-1, some at once.
func each(n, atOnce int, do func(int) error) error {
	var group sync.WaitGroup
	failed := make(chan error, n)
	slots := make(chan struct{}, max(1, atOnce))
	for i := range n {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				failed <- err
			}
		})
	}
	group.Wait()
	close(failed)
	return <-failed
}
