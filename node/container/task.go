package container

import (
	"context"
	"fmt"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// TaskRequest is what a client says of a task when it makes one.
type TaskRequest struct {
	Rootfs   []snapshot.Mount `json:"rootfs,omitempty"` // that make <bundle>/rootfs; none: the spec says where the root is
	Streams  Streams          `json:"streams"`
	Log      *LogFile         `json:"log,omitempty"`   // instead of Streams: the node keeps the output
	Stdin    bool             `json:"stdin,omitempty"` // with Log: there is one that Set.Stdin writes to
	Terminal bool             `json:"terminal,omitempty"`
	Options  *spec.Opaque     `json:"options,omitempty"`
	Runtime  string           `json:"runtime,omitempty"` // "" is the container's own
	Restore  string           `json:"restore,omitempty"` // folder of a checkpoint to go on from
}

// TaskStatus is how far a task, or an exec in it, has come.
type TaskStatus string

// The statuses of tasks.
const (
	TaskCreated TaskStatus = "created"
	TaskRunning TaskStatus = "running"
	TaskStopped TaskStatus = "stopped"
	TaskPaused  TaskStatus = "paused"
	TaskPausing TaskStatus = "pausing"
)

// TaskState is a task, or an exec in it, as it is now.
type TaskState struct {
	Namespace string
	Container string
	Exec      string // "" for the task itself
	Bundle    string
	Pid       int // stays when it has ended
	Status    TaskStatus
	Streams   Streams
	Terminal  bool
	Exit      TaskExit // once Status is TaskStopped
}

// TaskExit is how a task or an exec ended.
type TaskExit struct {
	Pid  int       `json:"pid"`
	Code uint32    `json:"code"` // 255 where nobody can say
	At   time.Time `json:"at"`
}

// task is the running side of a given container, from CreateTask until it is
// deleted. It is never changed but replaced.
type task struct {
	taskRecord
	end *ending // the same for all that a task becomes; it stays when the task is deleted
}

// taskRecord is what outlives the node of a task, in a file that a reboot takes
// away as it takes the task.
type taskRecord struct {
	Request TaskRequest `json:"request"`
	Made    bool        `json:"made,omitempty"` // else it is being created
	Pid     int         `json:"pid,omitempty"`
	Cgroup  string      `json:"cgroup,omitempty"` // in every hierarchy
	Root    string      `json:"root,omitempty"`   // where its root file system is
	// Run: it is made and started by one command.
	Run bool `json:"run,omitempty"`
	// Starting is set before its process is let go, Started after.
	Starting bool         `json:"starting,omitempty"`
	Started  bool         `json:"started,omitempty"`
	Killed   bool         `json:"killed,omitempty"` // its client has sent it a signal
	Exit     *TaskExit    `json:"exit,omitempty"`
	Execs    []execRecord `json:"execs,omitempty"`
}

// live says whether there is a process, be it only created.
func (t *task) live() bool { return t != nil && t.Made && t.Exit == nil }

// changeTask replaces the task by what fn makes of it, in memory and in its
// file.
func (s *Set) changeTask(c *container, fn func(*taskRecord)) error {
	c.mu.Lock()
	next := *c.task.Load()
	fn(&next.taskRecord)
	c.task.Store(&next)
	c.mu.Unlock()
	return s.writeTask(c)
}

// dropTask makes it that there is no task.
func (s *Set) dropTask(c *container) error {
	c.mu.Lock()
	c.task.Store(nil)
	c.mu.Unlock()
	s.forgetExecs(c)
	return s.writeTask(c)
}

// Task returns a task, or an exec in it, as it is now.
func (s *Set) Task(_ context.Context, namespace, id, exec string) (TaskState, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return TaskState{}, noTask(err, id)
	}
	state, ok := s.taskOf(c)
	if !ok {
		return TaskState{}, noTask(nil, id)
	}
	if exec == "" {
		return state, nil
	}
	e, err := c.exec(exec)
	if err != nil {
		return TaskState{}, err
	}
	return e.taskState(state), nil
}

// Tasks returns the tasks of a namespace, by the ids of their containers.
func (s *Set) Tasks(_ context.Context, namespace string) ([]TaskState, error) {
	all := s.in(namespace)
	list := make([]TaskState, 0, len(all))
	for _, c := range all {
		if state, ok := s.taskOf(c); ok {
			list = append(list, state)
		}
	}
	return list, nil
}

func noTask(err error, id string) error {
	if err == nil || errs.KindOf(err) == errs.NotFound {
		return errs.New(errs.NotFound, "there is no task of container %s", id)
	}
	return err
}

// taskOf is the container's task, if it has one.
func (s *Set) taskOf(c *container) (TaskState, bool) {
	view := c.get()
	state := TaskState{
		Namespace: orElse(view.Namespace, spec.DefaultNamespace),
		Container: view.ID,
		Bundle:    s.bundleDir(c.id),
		Terminal:  view.Config.TTY,
		Status:    TaskRunning,
	}
	if c.given.Load() == nil {
		return c.nativeTask(state, view)
	}
	t := c.task.Load()
	if t == nil || !t.Made {
		return TaskState{}, false
	}
	state.Pid, state.Streams, state.Terminal = t.Pid, t.Request.Streams, t.Request.Terminal
	switch {
	case t.Exit != nil:
		state.Status, state.Exit = TaskStopped, *t.Exit
	case !t.Started:
		state.Status = TaskCreated
	case view.State.Status == spec.Paused:
		state.Status = TaskPaused
	}
	return state, true
}

// WaitTask waits for the end of a task, or of an exec in it.
func (s *Set) WaitTask(ctx context.Context, namespace, id, exec string) (TaskExit, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return TaskExit{}, noTask(err, id)
	}
	if exec != "" {
		e, err := c.exec(exec)
		if err != nil {
			return TaskExit{}, err
		}
		return e.wait(ctx)
	}
	end := c.ending() // before the state: it is then of this task or of one after it
	state, ok := s.taskOf(c)
	switch {
	case !ok:
		return TaskExit{}, noTask(nil, id)
	case state.Status == TaskStopped:
		return state.Exit, nil
	}
	if t := c.task.Load(); t != nil {
		end = t.end
	}
	select {
	case <-end.done:
		if end.err != nil {
			return TaskExit{}, end.err
		}
		return taskExit(state.Pid, end.exit), nil
	case <-ctx.Done():
		return TaskExit{}, ctx.Err()
	}
}

func taskExit(pid int, x spec.Exit) TaskExit {
	return TaskExit{Pid: pid, Code: uint32(x.Code), At: x.At}
}

// runtimeNamed finds the runtime that a client asks for, by the name of a
// protocol or of a shim.
func (s *Set) runtimeNamed(name string) (Runtime, error) {
	if name == "" || name == RuntimeV2 {
		return s.Runtimes[s.Runtime], nil
	}
	if r := s.Runtimes[name]; r != nil {
		return r, nil
	}
	if s.Shims == nil {
		return nil, errs.New(errs.Unsupported, "runtime %q is not configured on this node", name)
	}
	r, err := s.Shims(s.life, name)
	if err != nil {
		return nil, fmt.Errorf("runtime %s: %w", name, err)
	}
	return r, nil
}
