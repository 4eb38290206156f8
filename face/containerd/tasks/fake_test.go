package tasks_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/lease"
	"berth/node/stats"
	"berth/spec"
)

// set is the containers of a node that run nothing.
type set struct {
	mu     sync.Mutex
	givens map[string]spec.Given // by namespace/id
	tasks  map[string]*container.TaskState
	execs  map[string]*container.TaskState // by namespace/id/exec
	ends   map[string]chan struct{}
	seen   []string // what was asked for
	last   any
	report *spec.Opaque
}

func newSet() *set {
	return &set{
		givens: map[string]spec.Given{}, tasks: map[string]*container.TaskState{},
		execs: map[string]*container.TaskState{}, ends: map[string]chan struct{}{},
	}
}

func (s *set) note(format string, args ...any) {
	s.seen = append(s.seen, fmt.Sprintf(format, args...))
}

func (s *set) saw(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.seen, what)
}

func (s *set) CreateGiven(_ context.Context, g spec.Given) (spec.Given, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := g.Namespace + "/" + g.ID
	if _, ok := s.givens[key]; ok {
		return g, errs.New(errs.Exists, "container %q", g.ID)
	}
	g.Created = time.Now()
	g.Updated = g.Created
	s.givens[key] = g
	return g, nil
}

func (s *set) Given(_ context.Context, namespace, id string) (spec.Given, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.givens[namespace+"/"+id]
	if !ok {
		return g, errs.New(errs.NotFound, "container %q in namespace %q", id, namespace)
	}
	return g, nil
}

func (s *set) Givens(_ context.Context, namespace string) ([]spec.Given, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []spec.Given
	for _, key := range slices.Sorted(maps.Keys(s.givens)) {
		if g := s.givens[key]; namespace == "" || g.Namespace == namespace {
			all = append(all, g)
		}
	}
	return all, nil
}

func (s *set) UpdateGiven(ctx context.Context, namespace, id string, change func(*spec.Given) error) (spec.Given, error) {
	g, err := s.Given(ctx, namespace, id)
	if err != nil {
		return g, err
	}
	if err := change(&g); err != nil {
		return g, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.Updated = time.Now()
	s.givens[namespace+"/"+id] = g
	return g, nil
}

func (s *set) RemoveGiven(ctx context.Context, namespace, id string) error {
	if _, err := s.Given(ctx, namespace, id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.givens, namespace+"/"+id)
	return nil
}

func (s *set) CreateTask(ctx context.Context, namespace, id string, req container.TaskRequest) (container.TaskState, error) {
	if _, err := s.Given(ctx, namespace, id); err != nil {
		return container.TaskState{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := namespace + "/" + id
	if s.tasks[key] != nil {
		return container.TaskState{}, errs.New(errs.Exists, "task %s", id)
	}
	s.last = req
	t := &container.TaskState{
		Namespace: namespace, Container: id, Bundle: "/b/" + id, Pid: 100 + len(s.tasks), Status: container.TaskCreated,
		Streams: req.Streams, Terminal: req.Terminal,
	}
	s.tasks[key], s.ends[key] = t, make(chan struct{})
	return *t, nil
}

func (s *set) find(namespace, id, exec string) (*container.TaskState, string, error) {
	key := namespace + "/" + id
	t := s.tasks[key]
	if exec != "" {
		key += "/" + exec
		t = s.execs[key]
	}
	if t == nil {
		return nil, key, errs.New(errs.NotFound, "task %s not found", key)
	}
	return t, key, nil
}

func (s *set) StartTask(_ context.Context, namespace, id, exec string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, _, err := s.find(namespace, id, exec)
	if err != nil {
		return 0, err
	}
	t.Status = container.TaskRunning
	return t.Pid, nil
}

func (s *set) end(namespace, id, exec string, code uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, key, err := s.find(namespace, id, exec)
	if err != nil {
		return
	}
	t.Status, t.Exit = container.TaskStopped, container.TaskExit{Pid: t.Pid, Code: code, At: time.Unix(1700000000, 5)}
	close(s.ends[key])
}

func (s *set) DeleteTask(_ context.Context, namespace, id string) (container.TaskExit, error) {
	return s.drop(namespace, id, "")
}

func (s *set) DeleteExec(_ context.Context, namespace, id, exec string) (container.TaskExit, error) {
	return s.drop(namespace, id, exec)
}

func (s *set) drop(namespace, id, exec string) (container.TaskExit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, key, err := s.find(namespace, id, exec)
	switch {
	case err != nil:
		return container.TaskExit{}, err
	case t.Status == container.TaskRunning:
		return container.TaskExit{}, errs.New(errs.Conflict, "task must be stopped before deletion: running")
	}
	delete(s.tasks, key)
	delete(s.execs, key)
	return t.Exit, nil
}

func (s *set) Task(_ context.Context, namespace, id, exec string) (container.TaskState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, _, err := s.find(namespace, id, exec)
	if err != nil {
		return container.TaskState{}, err
	}
	return *t, nil
}

func (s *set) Tasks(_ context.Context, namespace string) ([]container.TaskState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []container.TaskState
	for _, t := range s.tasks {
		if t.Namespace == namespace {
			all = append(all, *t)
		}
	}
	return all, nil
}

func (s *set) WaitTask(ctx context.Context, namespace, id, exec string) (container.TaskExit, error) {
	s.mu.Lock()
	t, key, err := s.find(namespace, id, exec)
	ended := s.ends[key]
	s.mu.Unlock()
	if err != nil {
		return container.TaskExit{}, err
	}
	select {
	case <-ended:
		return t.Exit, nil
	case <-ctx.Done():
		return container.TaskExit{}, ctx.Err()
	}
}

func (s *set) AddExec(_ context.Context, namespace, id string, req container.ExecRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, _, err := s.find(namespace, id, ""); err != nil {
		return err
	}
	key := namespace + "/" + id + "/" + req.ID
	if s.execs[key] != nil {
		return errs.New(errs.Exists, "exec %s", req.ID)
	}
	s.last = req
	s.execs[key] = &container.TaskState{Namespace: namespace, Container: id, Exec: req.ID, Pid: 500, Status: container.TaskCreated, Streams: req.Streams}
	s.ends[key] = make(chan struct{})
	return nil
}

func (s *set) KillTask(_ context.Context, namespace, id, exec string, sig syscall.Signal, all bool) error {
	s.mu.Lock()
	t, _, err := s.find(namespace, id, exec)
	s.note("kill %s/%s/%s %d %v", namespace, id, exec, sig, all)
	s.mu.Unlock()
	switch {
	case err != nil:
		return err
	case t.Status == container.TaskStopped:
		return errs.New(errs.NotFound, "process already finished")
	}
	s.end(namespace, id, exec, 128+uint32(sig))
	return nil
}

func (s *set) set(namespace, id string, status container.TaskStatus) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, _, err := s.find(namespace, id, "")
	if err == nil {
		t.Status = status
	}
	return err
}

func (s *set) PauseTask(_ context.Context, namespace, id string) error {
	return s.set(namespace, id, container.TaskPaused)
}

func (s *set) ResumeTask(_ context.Context, namespace, id string) error {
	return s.set(namespace, id, container.TaskRunning)
}

func (s *set) ResizeTask(_ context.Context, namespace, id, exec string, size spec.Size) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("resize %s/%s/%s %dx%d", namespace, id, exec, size.Rows, size.Cols)
	return nil
}

func (s *set) CloseTaskStdin(_ context.Context, namespace, id, exec string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("close %s/%s/%s", namespace, id, exec)
	return nil
}

func (s *set) UpdateTask(_ context.Context, namespace, id string, limits *specs.LinuxResources, annotations map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("update %s/%s %d %s", namespace, id, *limits.Pids.Limit, annotations["a"])
	return nil
}

func (s *set) TaskPids(context.Context, string, string) ([]container.TaskPid, error) {
	return []container.TaskPid{{Pid: 100}, {Pid: 500, Exec: "e"}}, nil
}

func (s *set) CheckpointTask(_ context.Context, namespace, id string, c container.Checkpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("checkpoint %s/%s %v", namespace, id, c.Exit)
	return os.WriteFile(filepath.Join(c.Image, "pages-1.img"), []byte("memory of "+id), 0o600)
}

func (s *set) TaskCgroup(_ context.Context, namespace, id string) (string, int, *spec.Opaque, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "/" + namespace + "/" + id, 100, s.report, nil
}

// meter has numbers of both versions.
type meter struct{ unified bool }

func (m meter) Detail(cgroup string) (stats.Detail, error) {
	if strings.HasSuffix(cgroup, "/gone") {
		return stats.Detail{}, errs.New(errs.NotFound, "no cgroup")
	}
	return stats.Detail{
		Unified: m.unified, CPU: stats.Values{"usage": 7, "usage_usec": 8}, Memory: stats.Values{"total_inactive_file": 9, "inactive_file": 10},
		Events: stats.Values{"oom_kill": 1}, Levels: map[string]stats.Level{"memory": {Usage: 11, Limit: 12}}, Pids: stats.Level{Usage: 2},
		Huge: map[string]stats.Level{"2MB": {Usage: 3}}, Bytes: []stats.Moved{{Major: 8, Kind: "Read", Value: 4}},
		IO: []stats.Device{{Major: 8, Values: stats.Values{"rbytes": 5}}},
	}, nil
}

// blobs are contents in memory.
type blobs struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (b *blobs) Open(_ context.Context, _, of string) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.data[of]
	if !ok {
		return nil, errs.New(errs.NotFound, "content %s", of)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (b *blobs) Add(_ context.Context, _, _, _ string, r io.Reader) (string, int64, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	of := digest.FromBytes(data).String()
	b.data[of] = data
	return of, int64(len(data)), nil
}

// mounter makes mounts of type loop.
type mounter struct{ seen []string }

func (m *mounter) ForTask(_ context.Context, container string, rootfs []*types.Mount) ([]*types.Mount, error) {
	return slices.DeleteFunc(rootfs, func(one *types.Mount) bool {
		if one.GetType() != "loop" {
			return false
		}
		m.seen = append(m.seen, "loop "+container)
		return true
	}), nil
}

func (m *mounter) Release(_ context.Context, namespace, container string) error {
	m.seen = append(m.seen, "release "+namespace+"/"+container)
	return nil
}

// leases count what they are told.
type leases struct {
	mu        sync.Mutex
	held      []lease.Resource
	released  int
	triggered int
}

func (l *leases) Hold(_ string, all ...lease.Resource) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = append(l.held, all...)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.released += len(all)
	}
}

func (l *leases) Trigger() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.triggered++
}

// itemsOf is what an owner tells of.
func itemsOf(t *testing.T, o lease.Owner) iter.Seq[lease.Item] {
	t.Helper()
	return func(yield func(lease.Item) bool) {
		if err := o.Items(t.Context(), func(i lease.Item) { yield(i) }); err != nil {
			t.Error(err)
		}
	}
}
