package container

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/image/reference"
	"berth/spec"
)

// specType is what clients call an OCI runtime spec.
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// nativeGiven is a container of the node's own as clients see it.
func (s *Set) nativeGiven(_ context.Context, c *container) spec.Given {
	view := c.get()
	labels := maps.Clone(view.Config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[nameLabel] = view.Name
	return spec.Given{
		Namespace:   spec.DefaultNamespace,
		ID:          view.ID,
		Labels:      labels,
		Image:       fullName(view.Image),
		Runtime:     RuntimeV2,
		Spec:        &spec.Opaque{Type: specType, Value: s.nativeSpec(c)},
		Snapshotter: s.Snapshotter,
		SnapshotKey: view.Snapshot,
		Created:     view.Created,
		Updated:     view.Created,
	}
}

func fullName(image string) string {
	name, err := reference.Parse(image)
	if err != nil {
		return image
	}
	return name.String()
}

// shownSpec is the spec of a container of the node's own as it was made up for
// one view of it.
type shownSpec struct {
	of   *spec.Container
	data []byte
}

// nativeSpec is what the container runs by, or the beginnings of what it would.
func (s *Set) nativeSpec(c *container) []byte {
	view := c.get()
	if shown := c.shown.Load(); shown != nil && shown.of == view {
		return shown.data
	}
	oci := s.writtenSpec(view)
	// nerdctl refuses a container that does not say which networks of nerdctl's
	// it is on.
	oci.Annotations = maps.Clone(oci.Annotations)
	if oci.Annotations == nil {
		oci.Annotations = map[string]string{}
	}
	oci.Annotations[networksLabel] = `["none"]`
	data, err := json.Marshal(oci)
	if err != nil {
		return []byte("{}")
	}
	c.shown.Store(&shownSpec{view, data})
	return data
}

// networksLabel is where nerdctl says which of its networks a container is on.
const networksLabel = "nerdctl/networks"

func (s *Set) writtenSpec(c *spec.Container) *specs.Spec {
	if alive(c.State.Status) {
		oci := &specs.Spec{}
		data, err := os.ReadFile(filepath.Join(s.bundleDir(c.ID), "config.json"))
		if err == nil && json.Unmarshal(data, oci) == nil {
			return oci
		} // it ends right now
	}
	return &specs.Spec{
		Version:     "1.0.2",
		Hostname:    c.Config.Hostname,
		Annotations: c.Config.Annotations,
		Root:        &specs.Root{Path: "rootfs", Readonly: c.Config.Security.ReadOnlyRoot},
		Process:     &specs.Process{Terminal: c.Config.TTY, Args: c.Args, Env: c.Config.Env, Cwd: orElse(c.Config.WorkDir, "/")},
		Linux:       &specs.Linux{},
	}
}

// updateNative changes the labels of a container of the node's own, and its
// name, which is one of them. op is held.
func (s *Set) updateNative(ctx context.Context, c *container, change func(*spec.Given) error) error {
	before := s.nativeGiven(ctx, c)
	next := copyGiven(&before)
	if err := change(&next); err != nil {
		return err
	}
	labels, name := next.Labels, next.Labels[nameLabel]
	next.Labels, next.Updated = before.Labels, before.Updated
	if !reflect.DeepEqual(before, next) {
		return errs.New(errs.Conflict, "it was made by berth run: only its labels can change")
	}
	if name != "" && name != before.Labels[nameLabel] {
		if err := checkName(name); err != nil {
			return err
		}
		if err := s.rename(ctx, c, name); err != nil {
			return err
		}
	}
	delete(labels, nameLabel)
	view := c.change(func(c *spec.Container) { c.Config.Labels = labels })
	s.publish(view, "update")
	return s.db.write(ctx, c)
}

// nativeTask is the task of a container of the node's own: there while it runs,
// and after its end until a client deletes it.
func (c *container) nativeTask(state TaskState, view *spec.Container) (TaskState, bool) {
	state.Pid = view.State.Pid
	switch view.State.Status {
	case spec.Running:
		return state, true
	case spec.Paused:
		state.Status = TaskPaused
		return state, true
	case spec.Stopped, spec.Restarting:
	default:
		return TaskState{}, false
	}
	c.mu.Lock()
	dismissed := c.dismissed
	c.mu.Unlock()
	state.Status, state.Exit = TaskStopped, taskExit(0, exitOf(view))
	return state, !dismissed && !view.State.FinishedAt.IsZero()
}
