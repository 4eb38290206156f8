package rest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/base/errs"
	"berth/client"
	"berth/face/rest"
	"berth/node/container"
	"berth/node/logfile"
	"berth/spec"
)

// node is every room at once, as far as tests need: it notes what it was asked
// and answers with what the test set.
type node struct {
	mu    sync.Mutex
	calls []string
	fail  error // what every call answers, if set

	list  []spec.Container
	stats []spec.Stats

	logged  []logfile.Line
	ended   bool
	changed chan struct{} // closed and replaced when logged or ended changes

	stdin   bytes.Buffer
	stdinAt chan struct{} // closed when stdin is closed
	closing sync.Once
	exec    func() *container.ExecSession
	execEnd chan struct{}
	upload  func(io.Reader) error
	export  func(io.Writer) error
	pull    func(context.Context, func(spec.Progress)) error
	events  []spec.Event
}

func newNode() *node {
	return &node{changed: make(chan struct{}), stdinAt: make(chan struct{}), execEnd: make(chan struct{})}
}

const id = "4f2f0d9d2b1f4c1f8f0b6b3a1d5e7c9ab0c1d2e3f4a5968778695a4b3c2d1e0f"

func (n *node) note(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, fmt.Sprintf(format, args...))
	return n.fail
}

func (n *node) last() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.calls) == 0 {
		return ""
	}
	return n.calls[len(n.calls)-1]
}

func (n *node) write(lines ...logfile.Line) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.logged = append(n.logged, lines...)
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *node) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	close(n.changed)
	n.changed = make(chan struct{})
}

type containers struct{ *node }

func (c containers) one() spec.Container {
	return spec.Container{ID: id, Name: "web", Config: spec.ContainerConfig{Image: "alpine", OpenStdin: true, StdinOnce: true}, State: spec.ContainerState{Status: spec.Running}, Ports: []spec.PortMapping{{ContainerPort: 80, HostPort: 8080}}}
}

func (c containers) Create(_ context.Context, config spec.ContainerConfig) (spec.Container, error) {
	out := c.one()
	out.Config = config
	return out, c.note("create %s %v", config.Image, config.Rlimits)
}

func (c containers) Get(_ context.Context, ref string) (spec.Container, error) {
	return c.one(), c.note("get %s", ref)
}

func (c containers) List(_ context.Context, all bool, filter spec.Filter) ([]spec.Container, error) {
	return c.list, c.note("list %v %v", all, filter)
}

func (c containers) Sizes(_ context.Context, ref string) (spec.ContainerSizes, error) {
	return spec.ContainerSizes{RootFS: 2, RW: 1}, c.note("sizes %s", ref)
}

func (c containers) Rename(_ context.Context, ref, name string) error {
	return c.note("rename %s %s", ref, name)
}

func (c containers) Update(_ context.Context, ref string, u spec.ContainerUpdate) (spec.Container, error) {
	return c.one(), c.note("update %s %v", ref, u.Restart)
}

func (c containers) Remove(_ context.Context, ref string, force, volumes bool) error {
	return c.note("remove %s %v %v", ref, force, volumes)
}

func (c containers) Prune(_ context.Context, f spec.Filter) (spec.Pruned, error) {
	return spec.Pruned{}, c.note("prune containers %v", f)
}
func (c containers) Start(_ context.Context, ref string) error { return c.note("start %s", ref) }
func (c containers) Stop(_ context.Context, ref string, timeout *int, signal string) error {
	return c.note("stop %s %s %s", ref, number(timeout), signal)
}

func (c containers) Kill(_ context.Context, ref, signal string) error {
	return c.note("kill %s %s", ref, signal)
}

func (c containers) Restart(_ context.Context, ref string, timeout *int, signal string) error {
	return c.note("restart %s %s %s", ref, number(timeout), signal)
}
func (c containers) Pause(_ context.Context, ref string) error   { return c.note("pause %s", ref) }
func (c containers) Unpause(_ context.Context, ref string) error { return c.note("unpause %s", ref) }

func (c containers) Wait(ctx context.Context, ref, condition string) (spec.Exit, error) {
	if err := c.note("wait %s %s", ref, condition); err != nil {
		return spec.Exit{}, err
	}
	for {
		c.mu.Lock()
		ended, changed := c.ended, c.changed
		c.mu.Unlock()
		if ended {
			return spec.Exit{Code: 7, At: time.Unix(1, 0).UTC()}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return spec.Exit{}, ctx.Err()
		}
	}
}

func (c containers) Connect(_ context.Context, ref, network string, e spec.EndpointConfig) error {
	return c.note("connect %s %s %s", ref, network, e.IPv4)
}

func (c containers) Disconnect(_ context.Context, ref, network string) error {
	return c.note("disconnect %s %s", ref, network)
}

func (c containers) Top(_ context.Context, ref string, args []string) (spec.ProcessTable, error) {
	return spec.ProcessTable{Titles: []string{"PID"}, Processes: [][]string{{"1"}}}, c.note("top %s %v", ref, args)
}

func (c containers) Stats(_ context.Context, refs []string) ([]spec.Stats, error) {
	return c.stats, c.note("stats %v", refs)
}

// Logs knows positions as "<line>:0"; the fake's log never rotates.
func (c containers) Logs(ctx context.Context, ref string, q logfile.Query, fn func(logfile.Line) error) error {
	if err := c.note("logs %s tail=%d follow=%v", ref, q.Tail, q.Follow); err != nil {
		return err
	}
	next, skip := 0, q.Skip
	if q.From != "" {
		if _, err := fmt.Sscanf(string(q.From), "%d:0", &next); err != nil {
			return errs.New(errs.Invalid, "position %q", q.From)
		}
	}
	for {
		c.mu.Lock()
		lines, ended, changed := c.logged, c.ended, c.changed
		c.mu.Unlock()
		for ; next < len(lines); next++ {
			l := lines[next]
			if l.Time.Before(q.Since) {
				continue
			}
			if cut := min(skip, int64(len(l.Text))); cut > 0 {
				l.Text = l.Text[cut:]
				skip -= cut
			}
			if skip > 0 && !l.Partial {
				skip--
				continue
			}
			if len(l.Text) == 0 && l.Partial {
				continue
			}
			if err := fn(l); err != nil {
				return err
			}
		}
		if ended || !q.Follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c containers) LogPosition(context.Context, string) (logfile.Position, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return logfile.Position(fmt.Sprintf("%d:0", len(c.logged))), nil
}

func (c containers) NextEnd(ctx context.Context, _ string) (<-chan struct{}, error) {
	over := make(chan struct{})
	go func() {
		_, _ = c.Wait(ctx, "end", "")
		close(over)
	}()
	return over, c.note("next end")
}

type stdin struct{ *node }

func (s stdin) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stdin.Write(p)
}

func (s stdin) Close() error { s.closing.Do(func() { close(s.stdinAt) }); return nil }

func (c containers) Stdin(context.Context, string) (io.WriteCloser, error) { return stdin(c), c.fail }

func (c containers) Resize(_ context.Context, ref string, size spec.Size) error {
	return c.note("resize %s %v", ref, size)
}

func (c containers) CreateExec(_ context.Context, ref string, config spec.ExecConfig) (spec.Exec, error) {
	return spec.Exec{ID: "e1", Config: config}, c.note("exec %s %v", ref, config.Command)
}

func (c containers) StartExec(_ context.Context, ref string) (*container.ExecSession, error) {
	if err := c.note("start exec %s", ref); err != nil {
		return nil, err
	}
	if ref == "missing-command" {
		return nil, &container.StartError{Code: 127, Err: errors.New(`exec: "frob": executable file not found in $PATH`)}
	}
	if c.exec == nil {
		return &container.ExecSession{ID: ref}, nil
	}
	return c.exec(), nil
}

func (c containers) WaitExec(ctx context.Context, ref string) (spec.Exec, error) {
	select {
	case <-c.execEnd:
	case <-ctx.Done():
		return spec.Exec{}, ctx.Err()
	}
	return spec.Exec{ID: ref, ExitCode: 3}, c.note("wait exec %s", ref)
}

func (c containers) ResizeExec(_ context.Context, ref string, size spec.Size) error {
	return c.note("resize exec %s %v", ref, size)
}

func (c containers) GetExec(_ context.Context, ref string) (spec.Exec, error) {
	return spec.Exec{ID: ref, Config: spec.ExecConfig{Detach: ref == "detached"}}, c.note("get exec %s", ref)
}

func (c containers) Changes(_ context.Context, ref string) ([]spec.Change, error) {
	return nil, c.note("changes %s", ref)
}

func (c containers) Export(_ context.Context, ref string, w io.Writer) error {
	if err := c.note("export %s", ref); err != nil || c.export == nil {
		return err
	}
	return c.export(w)
}

func (c containers) StatPath(_ context.Context, ref, path string) (spec.PathStat, error) {
	return spec.PathStat{Name: filepath.Base(path), Size: 5}, c.note("stat %s %s", ref, path)
}

func (c containers) CopyFrom(_ context.Context, ref, path string, w io.Writer) (spec.PathStat, error) {
	if err := c.note("copy from %s %s", ref, path); err != nil || c.export == nil {
		return spec.PathStat{}, err
	}
	return spec.PathStat{}, c.export(w)
}

func (c containers) CopyTo(_ context.Context, ref, path string, r io.Reader, overwrite bool) error {
	if err := c.note("copy to %s %s %v", ref, path, overwrite); err != nil || c.upload == nil {
		return err
	}
	return c.upload(r)
}

func (c containers) Commit(_ context.Context, ref string, req spec.CommitRequest) (spec.Image, error) {
	return spec.Image{ID: "sha256:c"}, c.note("commit %s %s", ref, req.Reference)
}

func number(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

type images struct{ *node }

func (i images) Pull(ctx context.Context, req spec.PullRequest, tell func(spec.Progress)) (spec.Image, error) {
	if err := i.note("pull %s", req.Reference); err != nil {
		return spec.Image{}, err
	}
	tell(spec.Progress{Phase: spec.Fetching, Item: "sha256:l", Current: 1, Total: 2})
	if i.pull != nil {
		if err := i.pull(ctx, tell); err != nil {
			return spec.Image{}, err
		}
	}
	return spec.Image{ID: "sha256:p"}, nil
}

func (i images) Push(_ context.Context, req spec.PushRequest, tell func(spec.Progress)) error {
	return i.note("push %s", req.Reference)
}

func (i images) Load(_ context.Context, r io.Reader, tell func(spec.Progress)) ([]spec.Image, error) {
	if err := i.note("load"); err != nil {
		return nil, err
	}
	if i.upload != nil {
		if err := i.upload(r); err != nil {
			return nil, err
		}
	}
	return []spec.Image{{ID: "sha256:a"}, {ID: "sha256:b"}}, nil
}

func (i images) Save(_ context.Context, refs []string, format string, w io.Writer) error {
	if err := i.note("save %v %s", refs, format); err != nil || i.export == nil {
		return err
	}
	return i.export(w)
}

func (i images) List(_ context.Context, f spec.Filter) ([]spec.Image, error) {
	return nil, i.note("images %v", f)
}

func (i images) Get(_ context.Context, ref string) (spec.Image, error) {
	return spec.Image{ID: "sha256:g"}, i.note("image %s", ref)
}

func (i images) Tag(_ context.Context, source, name string) error {
	return i.note("tag %s %s", source, name)
}

func (i images) Remove(_ context.Context, ref string, force bool) ([]spec.RemovedImage, error) {
	return []spec.RemovedImage{{Untagged: ref}}, i.note("rmi %s %v", ref, force)
}

func (i images) History(_ context.Context, ref string) ([]spec.HistoryEntry, error) {
	return nil, i.note("history %s", ref)
}

func (i images) Prune(_ context.Context, all bool, f spec.Filter) (spec.Pruned, error) {
	return spec.Pruned{Reclaimed: 9}, i.note("prune images %v %v", all, f)
}

type networks struct{ *node }

func (n networks) Create(_ context.Context, c spec.NetworkConfig) (spec.Network, error) {
	return spec.Network{ID: "n", Config: c}, n.note("network %s", c.Name)
}

func (n networks) Get(ref string) (spec.Network, error) {
	return spec.Network{ID: "n"}, n.note("get network %s", ref)
}

func (n networks) List(f spec.Filter) ([]spec.Network, error) { return nil, n.note("networks %v", f) }

func (n networks) Remove(_ context.Context, ref string) error {
	return n.note("remove network %s", ref)
}

func (n networks) Prune(_ context.Context, f spec.Filter) (spec.Pruned, error) {
	return spec.Pruned{}, n.note("prune networks %v", f)
}

type volumes struct{ *node }

func (v volumes) Create(_ context.Context, c spec.VolumeConfig) (spec.Volume, error) {
	return spec.Volume{Name: c.Name}, v.note("volume %s", c.Name)
}

func (v volumes) Get(_ context.Context, name string) (spec.Volume, error) {
	return spec.Volume{Name: name}, v.note("get volume %s", name)
}

func (v volumes) List(_ context.Context, f spec.Filter) ([]spec.Volume, error) {
	return nil, v.note("volumes %v", f)
}

func (v volumes) Remove(_ context.Context, name string, force bool) error {
	return v.note("remove volume %s %v", name, force)
}

func (v volumes) Prune(_ context.Context, all bool, f spec.Filter) (spec.Pruned, error) {
	return spec.Pruned{}, v.note("prune volumes %v %v", all, f)
}

type bus struct{ *node }

func (b bus) Subscribe(ctx context.Context, since, until time.Time, f spec.Filter) (iter.Seq2[spec.Event, error], error) {
	if err := b.note("events since=%d %v", max(0, since.Unix()), f); err != nil {
		return nil, err
	}
	return func(yield func(spec.Event, error) bool) {
		next := 0
		for {
			b.mu.Lock()
			events, changed := b.events, b.changed
			b.mu.Unlock()
			for ; next < len(events); next++ {
				if !events[next].Time.Before(since) && !yield(events[next], nil) {
					return
				}
			}
			if !until.IsZero() {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

func (i images) Scrub(_ context.Context, req spec.ScrubRequest, tell func(spec.ScrubProgress)) (spec.ScrubResult, error) {
	err := i.note("scrub %v", req.NoRepair)
	tell(spec.ScrubProgress{Part: "blob", Checked: 1, Damage: &spec.Damage{Name: "sha256:1", Images: []string{"a"}}})
	return spec.ScrubResult{Checked: 2, Damaged: 1}, err
}

type system struct{ *node }

func (s system) Info(context.Context) (spec.Info, error) {
	return spec.Info{Name: "here"}, s.note("info")
}
func (s system) Version() spec.Version { return spec.Version{Version: "1", API: "v1"} }
func (s system) DiskUsage(context.Context) (spec.DiskUsage, error) {
	return spec.DiskUsage{}, s.note("df")
}

type buildkit struct{ *node }

func (b buildkit) Get(context.Context) (spec.Builder, error) {
	return spec.Builder{Socket: "/s"}, b.note("builder")
}

func (b buildkit) Start(context.Context) (spec.Builder, error) {
	return spec.Builder{Running: true}, b.note("start builder")
}

func (b buildkit) Stop(_ context.Context, force bool) error { return b.note("stop builder %v", force) }

func (b buildkit) Cache(_ context.Context, filters []string) (spec.BuildCache, error) {
	return spec.BuildCache{Size: 1}, b.note("cache %v", filters)
}

func (b buildkit) Prune(_ context.Context, req spec.BuildCachePrune) (spec.BuildCache, error) {
	return spec.BuildCache{Size: 1}, b.note("prune cache %+v", req)
}

func (b buildkit) Share(context.Context) (spec.DiskShare, error) {
	return spec.DiskShare{Total: 1}, nil
}

func (n *node) handler(log io.Writer) http.Handler {
	s := &rest.Server{
		Containers: containers{n}, Images: images{n}, Networks: networks{n}, Volumes: volumes{n}, Events: bus{n}, System: system{n}, Builder: buildkit{n}, Pods: pods{n}, PodMeter: pods{n}, Seccomp: profiles{},
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "berth_up 1\n") }),
		Log:     slog.New(slog.NewTextHandler(log, nil)),
	}
	return s.Handler()
}

// daemon is a node behind a unix socket, which can be killed and come back.
type daemon struct {
	t      testing.TB
	node   *node
	socket string
	log    syncBuffer
	stop   func()
}

func start(t *testing.T, n *node) *daemon {
	d := &daemon{t: t, node: n, socket: filepath.Join(t.TempDir(), "s")}
	d.listen()
	t.Cleanup(func() { d.stop() })
	return d
}

func (d *daemon) serve(t testing.TB) { d.t = t; d.listen() }

func (d *daemon) listen() {
	d.t.Helper()
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(d.t.Context())
	h := d.node.handler(&d.log)
	var serving sync.WaitGroup
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			serving.Add(1)
			defer serving.Done()
			h.ServeHTTP(w, r)
		}),
		BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(slog.NewTextHandler(&d.log, nil), slog.LevelError),
	}
	var accepting sync.WaitGroup
	accepting.Go(func() { _ = srv.Serve(l) })
	d.stop = func() { cancel(); _ = srv.Close(); accepting.Wait(); serving.Wait() }
}

func (d *daemon) client() *client.Client {
	c := client.New(d.socket)
	d.t.Cleanup(c.Close)
	return c
}

// raw is an http client of the socket.
func (d *daemon) raw() *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
	}}
	d.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
