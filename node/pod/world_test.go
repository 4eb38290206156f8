package pod_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/kernelns"
	"berth/node/network"
	"berth/node/pod"
	"berth/node/snapshot"
	"berth/spec"
)

// world is a machine that pods are made on: what its rooms hold outlives a
// node, and some of it a reboot.
type world struct {
	t   *testing.T
	dir string
	db  *kv.DB

	mu         sync.Mutex
	boot       int
	namespaces map[string]kernelns.Want
	networks   map[string]bool
	snapshots  map[snapshot.Key]snapshot.Info
	mounts     map[string]string // target to key
	givens     map[string]*given
	watched    map[string]bool
	events     []string

	annotations map[string]string // of the image
	restored    map[string]string // container to what its start found of a checkpoint

	end   context.CancelFunc // of the node that runs
	step  int                // calls of rooms so far
	cue   func(step int, name string, after bool) error
	hooks *hooks
}

type given struct {
	spec.Given
	state spec.ContainerState
	ended chan struct{}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, dir: t.TempDir(),
		namespaces: map[string]kernelns.Want{}, networks: map[string]bool{}, snapshots: map[snapshot.Key]snapshot.Info{},
		mounts: map[string]string{}, givens: map[string]*given{}, watched: map[string]bool{}, restored: map[string]string{},
	}
	db, err := kv.Open(filepath.Join(w.dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	w.db = db
	t.Cleanup(func() { _ = db.Close() })
	t.Cleanup(w.unmount)
	w.snapshots["layers"] = snapshot.Info{Key: "layers", Kind: snapshot.KindCommitted}
	return w
}

// unmount takes away what the pods have mounted, as the end of the machine does.
func (w *world) unmount() {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.dir))
	if err != nil {
		w.t.Error(err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			w.t.Errorf("unmount %s: %v", m.Mountpoint, err)
		}
	}
}

// node starts a node on the machine. It is ended with the test.
func (w *world) node(change ...func(*pod.Config)) *pod.Set {
	w.t.Helper()
	config := pod.Config{
		DB: w.db, State: filepath.Join(w.dir, "state"), Boot: fmt.Sprint("boot-", w.boot),
		Runner: runner{w}, Networks: networks{w}, Namespaces: namespaces{w}, Snapshots: snapshots{w}, Images: images{w}, Events: events{w},
		Runtimes: func(handler string) (string, error) {
			if handler != "" {
				return "", errs.New(errs.NotFound, "there is no runtime %s", handler)
			}
			return "runc", nil
		},
		Features: func(context.Context, string) *features.Features { return nil },
		Seccomp:  watcher{w},
		Restored: filepath.Join(w.dir, "restored"),
		Host:     bundle.Host{Cgroup: 2, Hostname: "host"},
		Timeout:  10 * time.Second,
		Log:      slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	}
	if w.hooks != nil {
		config.Hooks = w.hooks
	}
	for _, c := range change {
		c(&config)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	w.end = cancel
	s, err := pod.Open(ctx, config)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// sweep runs the node's own work until f says that it is enough.
func (w *world) sweep(s *pod.Set, f func() error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w.until(f)
	cancel()
	<-done
}

func (w *world) until(f func() error) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(2 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
}

// reboot takes away what lives in memory.
func (w *world) reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.boot++
	clear(w.namespaces)
	clear(w.mounts)
	for _, g := range w.givens {
		if g.state.Status == spec.Running || g.state.Status == spec.Paused {
			g.state = spec.ContainerState{Status: spec.Stopped, ExitCode: 255, ExitUnknown: true, FinishedAt: time.Now()}
		}
	}
	w.unmount()
	// The node that is dead may be in the middle of a last file.
	w.until(func() error { return os.RemoveAll(filepath.Join(w.dir, "state")) })
}

// flush has what was postponed written.
func (w *world) flush() {
	w.t.Helper()
	if err := w.db.Update(w.t.Context(), func(tx *kv.Tx) error { return tx.Put("test", "flushed", fmt.Append(nil, time.Now())) }); err != nil {
		w.t.Fatal(err)
	}
}

// empty says what there still is of pods.
func (w *world) empty() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var left []string
	left = append(left, slices.Collect(maps.Keys(w.namespaces))...)
	left = append(left, slices.Collect(maps.Keys(w.networks))...)
	left = append(left, slices.Collect(maps.Keys(w.mounts))...)
	left = append(left, slices.Collect(maps.Keys(w.givens))...)
	left = append(left, slices.Collect(maps.Keys(w.watched))...)
	for key := range w.snapshots {
		if key != "layers" {
			left = append(left, "snapshot "+string(key))
		}
	}
	folders, _ := filepath.Glob(filepath.Join(w.dir, "state", "pods", "*"))
	left = append(left, folders...)
	parts, _ := filepath.Glob(filepath.Join(w.dir, "restored", "*"))
	left = append(left, parts...)
	err := w.db.View(func(tx *kv.Tx) error {
		for _, bucket := range []string{"pod", "podcontainer"} {
			if err := tx.Each(bucket, "", func(key string, _ []byte) error { left = append(left, bucket+" "+key); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left: %s", strings.Join(left, ", ")))
	}
	return err
}

// call is one call of a room: cue may have it fail, or never come back, before
// or after its effect.
func (w *world) call(name string, effect func() error) error {
	w.mu.Lock()
	step, cue := w.step, w.cue
	w.step++
	w.mu.Unlock()
	if cue != nil {
		if err := cue(step, name, false); err != nil {
			return err
		}
	}
	w.mu.Lock()
	err := effect()
	w.mu.Unlock()
	if cue != nil && err == nil {
		err = cue(step, name, true)
	}
	return err
}

func (w *world) setCue(cue func(step int, name string, after bool) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step, w.cue = 0, cue
}

type runner struct{ w *world }

func missing(id string) error { return errs.New(errs.NotFound, "no such container: %s", id) }

func (r runner) find(ref string) (*given, error) {
	g := r.w.givens[strings.TrimPrefix(ref, pod.Namespace+"+")]
	if g == nil || !strings.HasPrefix(ref, pod.Namespace+"+") {
		return nil, missing(ref)
	}
	return g, nil
}

func (r runner) Get(_ context.Context, ref string) (spec.Container, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	g, err := r.find(ref)
	if err != nil {
		return spec.Container{}, err
	}
	return spec.Container{ID: g.ID, Namespace: pod.Namespace, State: g.state}, nil
}

func (r runner) Stop(_ context.Context, ref string, _ *int, _ string) error {
	return r.w.call("stop", func() error {
		g, err := r.find(ref)
		if err == nil && g.state.Status == spec.Running {
			g.end(137)
		}
		return err
	})
}

func (g *given) end(code int) {
	g.state.Status, g.state.ExitCode, g.state.FinishedAt, g.state.Pid = spec.Stopped, code, time.Now(), 0
	close(g.ended)
}

func (r runner) Remove(_ context.Context, ref string, _, _ bool) error {
	return r.w.call("remove", func() error {
		g, err := r.find(ref)
		if err != nil {
			return err
		}
		if g.state.Status == spec.Running {
			g.end(137)
		}
		delete(r.w.givens, g.ID)
		delete(r.w.mounts, "root of "+g.ID)
		return nil
	})
}

func (r runner) Given(_ context.Context, namespace, id string) (spec.Given, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	g, err := r.find(namespace + "+" + id)
	if err != nil {
		return spec.Given{}, err
	}
	return g.Given, nil
}

func (r runner) Givens(context.Context, string) ([]spec.Given, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	var all []spec.Given
	for _, g := range r.w.givens {
		all = append(all, g.Given)
	}
	return all, nil
}

func (r runner) AdmitGiven(_ context.Context, g spec.Given) (spec.Given, error) {
	return g, r.w.call("admit", func() error {
		if r.w.givens[g.ID] != nil {
			return errs.New(errs.Exists, "there is a container %s", g.ID)
		}
		r.w.givens[g.ID] = &given{Given: g, state: spec.ContainerState{Status: spec.Created}, ended: make(chan struct{})}
		return nil
	})
}

func (r runner) SetGivenSpec(_ context.Context, namespace, id string, oci []byte) error {
	return r.w.call("set spec", func() error {
		g, err := r.find(namespace + "+" + id)
		if err == nil {
			g.Spec = &spec.Opaque{Value: oci}
		}
		return err
	})
}

func (r runner) MountRoot(_ context.Context, _, id string, key snapshot.Key) (string, error) {
	return filepath.Join(r.w.dir, "image"), r.w.call("mount root", func() error {
		r.w.mounts["root of "+id] = string(key)
		return os.MkdirAll(filepath.Join(r.w.dir, "image"), 0o700)
	})
}

func (r runner) UnmountRoot(_ context.Context, _, id string) error {
	return r.w.call("unmount root", func() error { delete(r.w.mounts, "root of "+id); return nil })
}

func (r runner) RunTask(_ context.Context, namespace, id string, req container.TaskRequest) (container.TaskState, error) {
	var state container.TaskState
	err := r.w.call("run", func() error {
		g, err := r.find(namespace + "+" + id)
		if err != nil {
			return err
		}
		if req.Restore != "" {
			memory, err := os.ReadFile(filepath.Join(req.Restore, "pages.img"))
			if err != nil {
				return err
			}
			r.w.restored[id] = string(memory)
		}
		g.state = spec.ContainerState{Status: spec.Running, Pid: os.Getpid(), StartedAt: time.Now()}
		state.Pid = g.state.Pid
		return nil
	})
	return state, err
}

func (r runner) WaitTask(ctx context.Context, namespace, id, _ string) (container.TaskExit, error) {
	r.w.mu.Lock()
	g, err := r.find(namespace + "+" + id)
	r.w.mu.Unlock()
	if err != nil {
		return container.TaskExit{}, err
	}
	select {
	case <-g.ended:
		return container.TaskExit{Code: 137}, nil
	case <-ctx.Done():
		return container.TaskExit{}, ctx.Err()
	}
}

func (r runner) UpdateTask(_ context.Context, namespace, id string, limits *specs.LinuxResources, _ map[string]string) error {
	return r.w.call("update", func() error {
		g, err := r.find(namespace + "+" + id)
		if err != nil {
			return err
		}
		data, err := json.Marshal(limits)
		g.Extensions = map[string]spec.Opaque{"limits": {Value: data}}
		return err
	})
}

func (r runner) PauseTask(_ context.Context, namespace, id string) error {
	return r.w.call("pause", func() error { return r.frozen(namespace, id, spec.Running, spec.Paused) })
}

func (r runner) ResumeTask(_ context.Context, namespace, id string) error {
	return r.w.call("resume", func() error { return r.frozen(namespace, id, spec.Paused, spec.Running) })
}

func (r runner) frozen(namespace, id string, from, to spec.State) error {
	g, err := r.find(namespace + "+" + id)
	if err == nil && g.state.Status != from {
		return errs.New(errs.Conflict, "it is %s", g.state.Status)
	}
	if err == nil {
		g.state.Status = to
	}
	return err
}

func (r runner) CheckpointTask(_ context.Context, namespace, id string, c container.Checkpoint) error {
	return r.w.call("checkpoint", func() error {
		g, err := r.find(namespace + "+" + id)
		if err != nil {
			return err
		}
		for _, other := range r.w.givens {
			if other.state.Status == spec.Running && !other.Quiet {
				return errs.New(errs.Internal, "container %s was not frozen before", other.ID)
			}
		}
		return errors.Join(
			os.WriteFile(filepath.Join(c.Image, "inventory.img"), nil, 0o600),
			os.WriteFile(filepath.Join(c.Image, "pages.img"), []byte("memory of "+g.Name), 0o600))
	})
}

func (r runner) ReopenLog(_ context.Context, ref string) error {
	return r.w.call("reopen", func() error { _, err := r.find(ref); return err })
}

type networks struct{ w *world }

func (n networks) AttachPod(_ context.Context, req network.PodRequest) ([]spec.PodInterface, []string, error) {
	err := n.w.call("attach", func() error { n.w.networks["network "+req.ID] = true; return nil })
	return []spec.PodInterface{{Name: "eth0", IPs: []string{"10.0.0.2"}}}, []string{"10.0.0.2"}, err
}

func (n networks) DetachPod(_ context.Context, req network.PodRequest) error {
	return n.w.call("detach", func() error { delete(n.w.networks, "network "+req.ID); return nil })
}

func (n networks) PodAttachments() []string {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	var ids []string
	for name := range n.w.networks {
		ids = append(ids, strings.TrimPrefix(name, "network "))
	}
	return ids
}

type namespaces struct{ w *world }

func (n namespaces) Make(_ context.Context, id string, want kernelns.Want) (kernelns.Paths, error) {
	return kernelns.Paths{Net: "/proc/self/ns/net"}, n.w.call("namespaces", func() error { n.w.namespaces[id] = want; return nil })
}

func (n namespaces) Finish(context.Context, string, map[string]string) error {
	return n.w.call("sysctls", func() error { return nil })
}

func (n namespaces) Remove(_ context.Context, id string) error {
	return n.w.call("remove namespaces", func() error { delete(n.w.namespaces, id); return nil })
}

func (n namespaces) List() ([]string, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return slices.Collect(maps.Keys(n.w.namespaces)), nil
}

type snapshots struct{ w *world }

func (s snapshots) add(key, parent snapshot.Key, kind snapshot.Kind, labels map[string]string) error {
	if _, ok := s.w.snapshots[key]; ok {
		return errs.New(errs.Exists, "there is a snapshot %s", key)
	}
	s.w.snapshots[key] = snapshot.Info{Key: key, Parent: parent, Kind: kind, Labels: labels}
	return nil
}

func (s snapshots) Prepare(_ context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error) {
	return snapshot.Active{}, s.w.call("prepare", func() error { return s.add(key, parent, snapshot.KindActive, labels) })
}

func (s snapshots) View(_ context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.View, error) {
	return snapshot.View{}, s.w.call("view", func() error { return s.add(key, parent, snapshot.KindView, labels) })
}

func (s snapshots) Mount(_ context.Context, key snapshot.Key, target string) error {
	return s.w.call("mount", func() error {
		s.w.mounts[target] = string(key)
		return nil
	})
}

func (s snapshots) Unmount(_ context.Context, target string) error {
	return s.w.call("unmount", func() error { delete(s.w.mounts, target); return nil })
}

func (s snapshots) Diff(_ context.Context, _ snapshot.Key, to io.Writer) error {
	return s.w.call("diff", func() error {
		w := tar.NewWriter(to)
		return errors.Join(
			w.WriteHeader(&tar.Header{Name: "changed", Typeflag: tar.TypeReg, Mode: 0o640, Size: 3}), second(w.Write([]byte("new"))),
			w.WriteHeader(&tar.Header{Name: ".wh.deleted", Typeflag: tar.TypeReg}), w.Close())
	})
}

func second[T any](_ T, err error) error { return err }

func (s snapshots) Remove(_ context.Context, key snapshot.Key) error {
	return s.w.call("remove snapshot", func() error {
		if _, ok := s.w.snapshots[key]; !ok {
			return errs.New(errs.NotFound, "no snapshot %s", key)
		}
		delete(s.w.snapshots, key)
		return nil
	})
}

func (s snapshots) Walk(_ context.Context, fn func(snapshot.Info) error) error {
	s.w.mu.Lock()
	all := slices.Collect(maps.Values(s.w.snapshots))
	s.w.mu.Unlock()
	for _, i := range all {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

type images struct{ w *world }

func (i images) Resolve(_ context.Context, ref string) (pod.Image, error) {
	image := pod.Image{
		ID: "sha256:1", Ref: "registry/busybox@sha256:2", Name: "registry/busybox:1", Layers: "layers",
		Config: spec.ImageConfig{Command: []string{"sh"}, StopSignal: "SIGQUIT"},
	}
	return image, i.w.call("resolve", func() error {
		if ref == "none" {
			return errs.New(errs.NotFound, "no image %s", ref)
		}
		return nil
	})
}

func (i images) Annotations(_ context.Context, ref string) (map[string]string, error) {
	return i.w.annotations, nil
}

type events struct{ w *world }

func (e events) Publish(kind, action, id string, _ map[string]string) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.w.events = append(e.w.events, kind+" "+action)
}

func (w *world) heard() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

type watcher struct{ w *world }

func (s watcher) Watch(_ context.Context, _ spec.Pod, c spec.PodContainer, profile *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	return profile, s.w.call("watch", func() error { s.w.watched["watched "+c.ID] = true; return nil })
}

func (s watcher) Unwatch(_ context.Context, id string) error {
	return s.w.call("unwatch", func() error { delete(s.w.watched, "watched "+id); return nil })
}

// podConfig is that of a pod.
func podConfig(name string) spec.PodConfig {
	return spec.PodConfig{
		Name: name, Namespace: "default", UID: "uid-" + name, LogDir: "/nowhere",
		Security: spec.PodSecurity{Namespaces: spec.PodNamespaces{Network: spec.NamespacePod, PID: spec.NamespaceContainer, IPC: spec.NamespacePod}},
	}
}

func containerConfig(name string) spec.PodContainerConfig {
	return spec.PodContainerConfig{
		Name: name, Image: "busybox", Command: []string{"sleep", "1d"},
		Security: spec.PodSecurity{Namespaces: spec.PodNamespaces{PID: spec.NamespaceContainer}},
	}
}
