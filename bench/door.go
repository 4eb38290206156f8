package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// doorRows are those in which containerd's own clients, and BuildKit, use both
// sides alike.
var doorRows = []string{"door-run", "door-once", "door-burst", "door-list", "door-metrics", "door-build", "door-namespaces"}

// doorRuntime is what both sides run containers with where ctr and BuildKit
// write their specs: those say OCI 1.3, which Debian's crun refuses.
const doorRuntime = "runc"

// doorRuntimes are those of the rows that are driven by peer, whose specs say
// OCI 1.0, with what is added to the name of the row.
func doorRuntimes() map[string]string { return map[string]string{"runc": "", "crun": "-crun"} }

// guest is a side as containerd's clients see it: its socket.
type guest struct {
	*containerd
	processes func() []int
	disk      string // folder of BuildKit's on the same disk
}

func (g guest) pids() []int { return g.processes() }

// with is the guest with another runtime.
func (g guest) with(runtime string) guest {
	g.containerd = &containerd{tools: g.tools, runtime: runtime, socket: g.socket}
	return g
}

// measureDoor runs the same clients against containerd and against a node's
// socket.
func (b *bench) measureDoor(ctx context.Context) error {
	if !b.wants(doorRows...) {
		return nil
	}
	if err := b.fillShelf(ctx); err != nil {
		return err
	}
	var guests []named
	for _, s := range b.sides {
		g, end, err := b.guest(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.column, err)
		}
		defer end()
		if err := g.ctr(ctx, "images", "import", "--snapshotter", "overlayfs", b.first); err != nil {
			return fmt.Errorf("%s: %w", s.column, err)
		}
		guests = append(guests, named{g, s.column})
	}
	for _, row := range []struct {
		names   []string
		measure func(context.Context, []named) error
	}{
		{[]string{"door-run"}, b.doorRuns},
		{[]string{"door-once"}, b.doorOnces},
		{[]string{"door-burst", "door-list", "door-metrics"}, b.doorBursts},
		{[]string{"door-build"}, b.doorBuilds},
		{[]string{"door-namespaces"}, b.doorNamespaces},
	} {
		if !b.wants(row.names...) {
			continue
		}
		b.log.InfoContext(ctx, "through containerd's clients", "row", row.names[0])
		if err := row.measure(ctx, guests); err != nil {
			return fmt.Errorf("%s: %w", row.names[0], err)
		}
	}
	return nil
}

// guest is the side itself where that is containerd, else a node of its own,
// which has the door's runtime.
func (b *bench) guest(ctx context.Context, s named) (g guest, end func(), err error) {
	if peer, is := s.side.(*containerd); is {
		c := &containerd{tools: peer.tools, runtime: doorRuntime, socket: peer.socket}
		return guest{c, peer.pids, b.place.disk("buildkit-" + s.column)}, func() {}, nil
	}
	node, err := newNode(b.place, b.settings, "door", fmt.Sprintf("runtime = %q\n[registry]\nlazy = \"off\"\n", doorRuntime))
	if err != nil {
		return g, nil, err
	}
	node.runtime = doorRuntime
	if err := node.open(ctx, b.first); err != nil {
		return g, nil, err
	}
	tools, err := filepath.Abs(b.peerDir)
	if err != nil {
		return g, nil, err
	}
	c := &containerd{tools: tools, runtime: doorRuntime, socket: node.socket}
	return guest{c, node.pids, b.place.disk("buildkit-" + s.column)}, func() { node.close(context.WithoutCancel(ctx)) }, nil
}

// doorRuns runs `ctr run --rm` as a user does.
func (b *bench) doorRuns(ctx context.Context, guests []named) error {
	const block = 10
	for done := 0; done < b.once; done += block {
		err := b.inTurn(done/block, guests, func(s named) error {
			for i := range min(block, b.once-done) {
				began := time.Now()
				err := s.side.(guest).ctr(ctx, "run", "--rm", "--snapshotter", "overlayfs", "--runc-binary", doorRuntime,
					"docker.io/"+firstImage, "run-"+strconv.Itoa(done+i), "/bin/true")
				if err != nil {
					return err
				}
				b.results.add("door-run", s.column, milliseconds(time.Since(began)))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// doorOnces takes containers from nothing to /bin/true to nothing, by
// containerd's client without the start of a program for each.
func (b *bench) doorOnces(ctx context.Context, guests []named) error {
	const block = 10
	for runtime, tag := range doorRuntimes() {
		for done := 0; done < b.once; done += block {
			err := b.inTurn(done/block, guests, func(s named) error {
				times, err := s.side.(guest).with(runtime).once(ctx, min(block, b.once-done))
				b.results.add("door-once"+tag, s.column, times...)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// doorBursts starts many tasks some at a time, and asks for all of them.
func (b *bench) doorBursts(ctx context.Context, guests []named) error {
	for runtime, tag := range doorRuntimes() {
		if err := b.doorBurstsWith(ctx, guests, runtime, tag); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) doorBurstsWith(ctx context.Context, guests []named, runtime, tag string) error {
	for round := range b.bursts {
		err := b.inTurn(round, guests, func(s named) error {
			g := s.side.(guest).with(runtime)
			took, err := g.burst(ctx, b.containers, b.atOnce)
			if err != nil {
				return err
			}
			b.results.add("door-burst"+tag, s.column, float64(b.containers)/took*1000)
			list, metrics, err := g.lists(ctx, b.lists)
			if err != nil {
				return err
			}
			b.results.add("door-list", s.column, list...)
			b.results.add("door-metrics", s.column, metrics...)
			return g.clear(ctx, b.containers, b.atOnce)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// doorBuilds has nerdctl build a Dockerfile of many steps, without a cache, by
// a BuildKit that is there already.
func (b *bench) doorBuilds(ctx context.Context, guests []named) (err error) {
	const steps = 30
	source := filepath.Join(b.place.dir, "source")
	if err := writeBuild(source, steps); err != nil {
		return err
	}
	clients, err := filepath.Abs(b.clients)
	if err != nil {
		return err
	}
	hosts := map[string]string{}
	for _, s := range guests {
		g := s.side.(guest)
		builder, host, err := b.buildkit(ctx, s.column, g, clients)
		if err != nil {
			return err
		}
		defer builder.stop(context.WithoutCancel(ctx))
		hosts[s.column] = host
	}
	for round := range b.builds {
		b.log.InfoContext(ctx, "build", "round", round+1, "of", b.builds)
		err := b.inTurn(round, guests, func(s named) error {
			g := s.side.(guest)
			if err := b.calm(ctx, s); err != nil {
				return err
			}
			began := time.Now()
			_, err := output(ctx, []string{"PATH=" + clients + ":" + os.Getenv("PATH")}, filepath.Join(clients, "nerdctl"),
				"--address", g.socket, "--namespace", "bench", "--snapshotter", "overlayfs",
				"build", "--buildkit-host", hosts[s.column], "--no-cache", "--progress", "plain", "-t", "bench/built:"+strconv.Itoa(round), source)
			b.results.add("door-build", s.column, time.Since(began).Seconds())
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// buildkit starts a buildkitd whose worker is the guest.
func (b *bench) buildkit(ctx context.Context, column string, g guest, clients string) (d *daemon, host string, err error) {
	socket := b.place.run("buildkit-" + column + ".sock")
	host = "unix://" + socket
	d = &daemon{
		argv: []string{
			filepath.Join(clients, "buildkitd"), "--config", os.DevNull, "--root", g.disk, "--addr", host,
			"--oci-worker=false", "--containerd-worker-addr", g.socket, "--containerd-worker-namespace", "bench", "--containerd-worker-snapshotter", "overlayfs", "--containerd-worker-net", "host",
		},
		log: filepath.Join(b.place.dir, "buildkit-"+column+".log"),
	}
	if err := d.start(); err != nil {
		return nil, "", err
	}
	err = d.poll(ctx, "buildkitd", func(ctx context.Context) error {
		_, err := output(ctx, nil, filepath.Join(clients, "buildctl"), "--addr", host, "du")
		return err
	})
	if err != nil {
		d.kill()
	}
	return d, host, err
}

// writeBuild writes a context whose Dockerfile has so many steps, COPY and RUN
// in turn.
func writeBuild(dir string, steps int) error {
	var text strings.Builder
	fmt.Fprintf(&text, "FROM docker.io/%s\n", firstImage)
	for n := range steps / 2 {
		from := filepath.Join(dir, "part", strconv.Itoa(n))
		if err := os.MkdirAll(from, 0o755); err != nil {
			return err
		}
		for i := range 20 {
			line := fmt.Sprintf("part %d, file %d\n", n, i)
			body := slices.Repeat([]byte(line), 4096/len(line))
			if err := os.WriteFile(filepath.Join(from, strconv.Itoa(i)), body, 0o644); err != nil {
				return err
			}
		}
		fmt.Fprintf(&text, "COPY part/%d /src/%d\nRUN mkdir -p /app && cp -r /src/%d /app/%d\n", n, n, n, n)
	}
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text.String()), 0o644)
}

// doorNamespaces pulls one image in three namespaces at once: how much more
// that is than one.
func (b *bench) doorNamespaces(ctx context.Context, guests []named) (err error) {
	server, err := shelf(b.shelf).serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.close()) }()
	ref := server.ref("first")
	pull := func(g guest, namespaces ...string) (float64, error) {
		began := time.Now()
		err := each(len(namespaces), len(namespaces), func(i int) error {
			return g.ctrIn(ctx, namespaces[i], "images", "pull", "--plain-http", "--snapshotter", "overlayfs", ref)
		})
		return time.Since(began).Seconds(), err
	}
	drop := func(g guest, namespaces ...string) error {
		return each(len(namespaces), 1, func(i int) error { return g.ctrIn(ctx, namespaces[i], "images", "rm", "--sync", ref) })
	}
	return b.inTurn(0, guests, func(s named) error {
		g := s.side.(guest)
		empty, err := b.used(ctx, s)
		if err != nil {
			return err
		}
		alone, err := pull(g, "one")
		if err != nil {
			return err
		}
		one, err := b.used(ctx, s)
		if err != nil {
			return err
		}
		if err := drop(g, "one"); err != nil {
			return err
		}
		between, err := b.used(ctx, s)
		if err != nil {
			return err
		}
		together, err := pull(g, "one", "two", "three")
		if err != nil {
			return err
		}
		three, err := b.used(ctx, s)
		if err != nil {
			return err
		}
		b.results.add("door-namespaces", s.column, together/alone)
		b.results.add("door-namespaces-disk", s.column, float64(three-between)/float64(one-empty))
		return drop(g, "one", "two", "three")
	})
}

// doorLines are the rows of containerd's own clients.
func (r results) doorLines(builds int) []line {
	ratio := func(limit float64) func(peer, ours float64) bool {
		return func(peer, ours float64) bool { return ours <= peer*limit }
	}
	within := func(limit float64) func(peer, ours float64) bool {
		return func(_, ours float64) bool { return ours < limit }
	}
	times := func(limit float64) func(peer, ours float64) bool {
		return func(peer, ours float64) bool { return ours >= limit*peer }
	}
	return []line{
		{row: "door-run", what: "ctr run --rm of /bin/true, runc, median", format: "%.1f ms", value: r.median, bar: "≤ 0.5 of containerd", met: ratio(0.5)},
		{row: "door-run", what: "the same, min", format: "%.1f ms", value: r.least},
		{row: "door-once", what: "create to exit to removed, by containerd's client, runc", format: "%.1f ms", value: r.median},
		{row: "door-once-crun", what: "the same with crun", format: "%.1f ms", value: r.median, bar: "≤ 0.5 of containerd", met: ratio(0.5)},
		{row: "door-list", what: "Tasks.List of 100", format: "%.2f ms", value: r.median, bar: "< 1 ms", met: within(1)},
		{row: "door-metrics", what: "Tasks.Metrics of 100", format: "%.2f ms", value: r.median, bar: "< 10 ms", met: within(10)},
		{row: "door-burst", what: "100 tasks started, 10 at a time, runc", format: "%.0f /s", value: r.median, bar: "≥ 3 times", met: times(3)},
		{row: "door-burst-crun", what: "the same with crun", format: "%.0f /s", value: r.median, bar: "≥ 3 times", met: times(3)},
		{row: "door-build", what: fmt.Sprintf("nerdctl build of 30 steps, COPY and RUN (median of %d)", builds), format: "%.2f s", value: r.median, bar: "≤ 0.7 of containerd", met: ratio(0.7)},
		{row: "door-namespaces", what: "one image pulled in three namespaces at once, to one pull", format: "%.2fx", value: r.median},
		{row: "door-namespaces-disk", what: "disk for it, to that for one: unpacked once", format: "%.2fx", value: r.median, bar: "≤ 1.1x", met: within(1.1)},
	}
}
