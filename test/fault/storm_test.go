package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/base/errs"
	"berth/client"
	"berth/image/registrytest"
	"berth/spec"
	"berth/test/machine"
)

// TestOneNameForTwenty has twenty clients make, run and remove containers of
// one name.
func TestOneNameForTwenty(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.inventory(t)
	events, made := n.events(t), 0
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			c := client.New(n.Socket)
			defer c.Close()
			for range 3 {
				_, err := c.ContainerCreate(t.Context(), spec.ContainerConfig{Name: "one", Image: image, Command: []string{"sleep", "1000"}})
				if err == nil {
					mu.Lock()
					made++
					mu.Unlock()
				} else if !errors.Is(err, errs.Exists) {
					t.Errorf("create: %v", err)
				}
				for what, err := range map[string]error{
					"start": c.ContainerStart(t.Context(), "one"),
					"kill":  c.ContainerKill(t.Context(), "one", "KILL"),
					"rm":    c.ContainerRemove(t.Context(), "one", true, true),
				} {
					if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) {
						t.Errorf("%s: %v", what, err)
					}
				}
			}
		})
	}
	all.Wait()
	if err := n.ContainerRemove(t.Context(), "one", true, true); err != nil && !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	n.same(t, before)
	n.works(t)
	machine.Until(t, "the events", func() error {
		got := events()
		if created, destroyed := got["create"], got["destroy"]; created != made+1 || destroyed != made+1 || got["start"] != got["die"] {
			return fmt.Errorf("%d were made; the events: %v", made+1, got)
		}
		return nil
	})
}

// events counts the events of containers by action, from now on.
func (n *node) events(t *testing.T) func() map[string]int {
	t.Helper()
	counts, mu := map[string]int{}, sync.Mutex{}
	ctx, cancel := context.WithCancel(t.Context())
	var reader sync.WaitGroup
	reader.Go(func() {
		err := n.Events(ctx, client.EventOptions{Since: time.Now()}, func(e spec.Event) error {
			mu.Lock()
			defer mu.Unlock()
			counts[e.Action]++
			return nil
		})
		if ctx.Err() == nil {
			t.Errorf("events: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); reader.Wait() })
	return func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(counts)
	}
}

// TestAllEndsAtOnce stops, kills and removes one container at the same time,
// with execs in it.
func TestAllEndsAtOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.inventory(t)
	for range 5 {
		n.ok(t, "run", "-d", "--name", "c", "--restart", "always", "-p", "0:80", "-v", "/data", image, "sleep", "1000")
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				var err error
				switch zero := 0; i % 6 {
				case 0:
					err = n.ContainerStop(t.Context(), "c", &zero, "")
				case 1:
					err = n.ContainerKill(t.Context(), "c", "KILL")
				case 2:
					err = n.ContainerRemove(t.Context(), "c", true, true)
				case 3:
					err = n.ContainerRestart(t.Context(), "c", &zero, "")
				case 4:
					err = n.ContainerPause(t.Context(), "c")
				case 5:
					r := n.berth(t, "exec", "c", "sleep", "0.01")
					if r.code == 0 || r.code == 137 || strings.Contains(r.err, "no such container") {
						return
					}
					if strings.Contains(r.err, "oci runtime") || strings.Contains(r.err, "internal") {
						t.Errorf("exec: %s", r)
					}
				}
				if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) {
					t.Errorf("%d: %v", i%6, err)
				}
			})
		}
		all.Wait()
		if err := n.ContainerRemove(t.Context(), "c", true, true); err != nil && !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
		n.same(t, before)
	}
	n.works(t)
}

// TestExecStorm runs many commands in one container, each with its own output
// and exit code.
func TestExecStorm(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sleeper(t, "c")
	before, files := n.inventory(t), n.held(t)
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			exec, err := n.ExecCreate(t.Context(), "c", spec.ExecConfig{Command: []string{"sh", "-c", fmt.Sprintf("seq 1000; echo %d; exit %d", i, i)}})
			if err != nil {
				t.Error(err)
				return
			}
			var out strings.Builder
			exit, err := n.ExecStart(t.Context(), exec.ID, client.AttachOptions{Stdout: &out})
			if err != nil || exit.Code != i || !strings.HasSuffix(out.String(), fmt.Sprintf("\n1000\n%d\n", i)) {
				t.Errorf("exec %d: %+v, %v, %d bytes", i, exit, err, out.Len())
			}
		})
	}
	all.Wait()
	n.same(t, before)
	n.holds(t, files)
	n.ok(t, "rm", "-f", "c")
}

// TestClientsVanish kills clients in the middle of everything that streams.
func TestClientsVanish(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(t, "run", "-d", "--name", "c", image, "sh", "-c", "while :; do echo line; sleep 0.05; done")
	n.ok(t, "exec", "c", "true")
	files := n.held(t)
	for range 3 {
		var clients []*clientProcess
		for _, args := range []string{
			"attach c", "logs -f c", "events", "stats c", "exec c sh -c while_true", "exec -i c cat", "exec c cat", "run --rm -i busybox:latest cat", "wait c",
		} {
			clients = append(clients, n.launch(t, strings.Fields(strings.ReplaceAll(args, "while_true", "yes"))...))
		}
		for _, c := range clients {
			c.vanish(t)
		}
	}
	// What run -i started ends with its input, and is removed.
	all, err := n.ContainerList(t.Context(), true, nil)
	machine.Must(t, err)
	for _, c := range all {
		if c.Name != "c" {
			if err := n.ContainerRemove(t.Context(), c.ID, true, true); err != nil && !errors.Is(err, errs.NotFound) {
				t.Error(err)
			}
		}
	}
	// An exec goes on without its client, as with docker, and ends with its
	// container.
	n.ok(t, "restart", "-t", "0", "c")
	n.holds(t, files)
	n.ok(t, "rm", "-f", "c")
	n.works(t)
}

// TestPullersVanish kills clients in the middle of a pull that stalls.
func TestPullersVanish(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before, held := n.inventory(t), n.held(t)
	reg := registrytest.New(t)
	reg.Push(t, "a", "1", small(t))
	reg.Break(registrytest.Fault{Match: registrytest.Blobs(), Handler: registrytest.Stall(1000)})
	var clients []*clientProcess
	for range 5 {
		clients = append(clients, n.launch(t, "pull", reg.Host()+"/a:1"), n.launch(t, "run", "--rm", reg.Host()+"/a:1"))
	}
	for _, c := range clients {
		c.vanish(t)
	}
	reg.CloseClientConnections() // the idle ones; the node would keep them for half a minute
	n.holds(t, held)
	n.pruned(t, before)
	reg.Mend()
	n.ok(t, "pull", reg.Host()+"/a:1")
	n.ok(t, "rmi", reg.Host()+"/a:1")
	n.pruned(t, before)
}

// clientProcess is a CLI whose output is read.
type clientProcess struct {
	kill func() error
	wait func() error
}

func (n *node) launch(t *testing.T, args ...string) *clientProcess {
	t.Helper()
	cmd := n.cli(t, args...)
	stdin, err := cmd.StdinPipe()
	machine.Must(t, err)
	stdout, err := cmd.StdoutPipe()
	machine.Must(t, err)
	machine.Must(t, cmd.Start())
	_, _ = io.WriteString(stdin, "hello\n")
	reader := bufio.NewReader(stdout)
	got := make(chan struct{})
	go func() { _, _ = reader.ReadString('\n'); close(got) }()
	select { // some say nothing
	case <-got:
	case <-time.After(200 * time.Millisecond):
	}
	return &clientProcess{kill: cmd.Process.Kill, wait: func() error { _ = stdin.Close(); return cmd.Wait() }}
}

func (c *clientProcess) vanish(t *testing.T) {
	t.Helper()
	machine.Must(t, c.kill())
	_ = c.wait() // it was killed
}

// held is what the node holds: open files by kind, and goroutines.
func (n *node) held(t *testing.T) map[string]int {
	t.Helper()
	held := map[string]int{}
	fds := fmt.Sprintf("/proc/%d/fd", n.Pid())
	entries, err := os.ReadDir(fds)
	machine.Must(t, err)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(fds, e.Name()))
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(target, ":")
		held[kind]++
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.Socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://berth/metrics", nil)
	machine.Must(t, err)
	resp, err := transport.RoundTrip(req)
	machine.Must(t, err)
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "go_goroutines %d", new(int)); err == nil {
			var count int
			_, _ = fmt.Sscanf(lines.Text(), "go_goroutines %d", &count)
			held["goroutines"] = count
		}
	}
	return held
}

// holds waits until the node holds no more than before; some connections may
// be kept for their next use.
func (n *node) holds(t *testing.T, before map[string]int) {
	t.Helper()
	n.Close()
	machine.Until(t, "what the node holds", func() error {
		for kind, count := range n.held(t) {
			if count > before[kind]+4 {
				return fmt.Errorf("%s: %d before, %d now", kind, before[kind], count)
			}
		}
		return nil
	})
}
