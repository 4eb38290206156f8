package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// ExecRequest is a further process in a task.
type ExecRequest struct {
	ID       string  `json:"id"` // unique in the task
	Streams  Streams `json:"streams"`
	Terminal bool    `json:"terminal,omitempty"`
	Process  []byte  `json:"process"` // of the OCI runtime spec, as JSON
}

// execRecord is what outlives the node of a client's exec, with its task.
type execRecord struct {
	ID      string      `json:"id"` // to the runtime
	Request ExecRequest `json:"request"`
	Started bool        `json:"started,omitempty"`
	Pid     int         `json:"pid,omitempty"`
	Failed  bool        `json:"failed,omitempty"` // its start: there never was a process
	Exit    *TaskExit   `json:"exit,omitempty"`
}

// AddExec prepares a further process in a task, for StartTask. errs.Exists:
// the task has an exec of that id. errs.Conflict: it has ended.
func (s *Set) AddExec(_ context.Context, namespace, id string, req ExecRequest) error {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return noTask(err, id)
	}
	if err := checkIdentifier("exec id", req.ID); err != nil {
		return err
	}
	process, err := req.process()
	if err != nil {
		return fmt.Errorf("exec %s in container %s: %w", req.ID, id, err)
	}
	state, ok := s.taskOf(c)
	switch {
	case !ok:
		return noTask(nil, id)
	case state.Status == TaskStopped:
		return errs.New(errs.Conflict, "the task of container %s has ended", id)
	}
	e := newTaskExec(c, newID(), req, process)
	if err := s.addExec(e); err != nil {
		return err
	}
	if err := s.writeTask(c); err != nil {
		s.forgetExec(e)
		return err
	}
	s.publish(c.get(), "exec_create: "+strings.Join(process.Args, " "), "execID", req.ID)
	return nil
}

func (r *ExecRequest) process() (*specs.Process, error) {
	process := &specs.Process{}
	if err := json.Unmarshal(r.Process, process); err != nil {
		return nil, errs.New(errs.Invalid, "its process: %w", err)
	}
	if len(process.Args) == 0 {
		return nil, errs.New(errs.Invalid, "its process has no arguments")
	}
	process.Terminal = r.Terminal
	return process, nil
}

func newTaskExec(c *container, id string, req ExecRequest, process *specs.Process) *execution {
	e := &execution{id: id, container: c, done: make(chan struct{}), request: &req}
	e.state = spec.Exec{ID: id, Container: c.get().ID, Config: spec.ExecConfig{
		Command: process.Args, Env: process.Env, WorkDir: process.Cwd, TTY: req.Terminal, Detach: true,
	}}
	return e
}

// addExec lets the exec be found by its client and by whoever owns processes.
func (s *Set) addExec(e *execution) error {
	c := e.container
	c.mu.Lock()
	taken := c.execs[e.request.ID] != nil
	if !taken {
		c.execs[e.request.ID] = e
	}
	c.mu.Unlock()
	if taken {
		return errs.New(errs.Exists, "the task of container %s has an exec %s already", c.get().ID, e.request.ID)
	}
	s.execMu.Lock()
	defer s.execMu.Unlock()
	s.execs[e.id] = e
	return nil
}

func (s *Set) forgetExec(e *execution) {
	e.container.mu.Lock()
	delete(e.container.execs, e.request.ID)
	e.container.mu.Unlock()
	s.execMu.Lock()
	delete(s.execs, e.id)
	s.execMu.Unlock()
	s.letGo(e)
}

// forgetExecs drops all that clients added to a task.
func (s *Set) forgetExecs(c *container) {
	for _, e := range c.clientExecs() {
		s.forgetExec(e)
	}
}

// exec finds a client's exec.
func (c *container) exec(name string) (*execution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.execs[name]; e != nil {
		return e, nil
	}
	return nil, errs.New(errs.NotFound, "the task of container %s has no exec %s", c.view.Load().ID, name)
}

func (c *container) clientExecs() []*execution {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.execs))
}

func (c *container) execRecords() []execRecord {
	var records []execRecord
	for _, e := range c.clientExecs() {
		records = append(records, e.record())
	}
	slices.SortFunc(records, func(a, b execRecord) int { return strings.Compare(a.Request.ID, b.Request.ID) })
	return records
}

func (e *execution) record() execRecord {
	e.mu.Lock()
	defer e.mu.Unlock()
	return execRecord{ID: e.id, Request: *e.request, Started: e.started, Failed: e.failed, Pid: e.pid, Exit: e.exitLocked()}
}

func (e *execution) exitLocked() *TaskExit {
	if e.ended.IsZero() {
		return nil
	}
	return &TaskExit{Pid: e.pid, Code: uint32(e.state.ExitCode), At: e.ended.UTC()}
}

// taskState is the exec as a part of its task. One that could not be started is
// for ever created, as clients know it; its end is for those who wait.
func (e *execution) taskState(of TaskState) TaskState {
	record := e.record()
	of.Exec, of.Pid, of.Streams, of.Terminal, of.Exit = record.Request.ID, record.Pid, record.Request.Streams, record.Request.Terminal, TaskExit{}
	switch {
	case record.Failed:
		of.Status = TaskCreated
	case record.Exit != nil:
		of.Status, of.Exit = TaskStopped, *record.Exit
	case record.Pid == 0:
		of.Status = TaskCreated
	default:
		of.Status = TaskRunning
	}
	return of
}

// startTaskExec runs a client's exec, once.
func (s *Set) startTaskExec(ctx context.Context, c *container, name string) (int, error) {
	e, err := c.exec(name)
	if err != nil {
		return 0, err
	}
	if !e.claim() {
		return 0, errs.New(errs.Conflict, "exec %s was started before", name)
	}
	pid := 0 // no result by name, as in CreateTask
	err = s.finish(ctx, func(ctx context.Context) error {
		if err := s.writeTask(c); err != nil {
			return err
		}
		p, err := s.runExec(ctx, e)
		if err != nil {
			e.fail(err)
			return errors.Join(err, s.writeTask(c))
		}
		pid = p.Pid
		err = s.writeTask(c)
		s.tellExecStart(e)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("exec %s in container %s: %w", name, c.get().ID, err)
	}
	return pid, nil
}

// endTaskExec keeps the end of a client's exec for DeleteExec.
func (s *Set) endTaskExec(e *execution) {
	e.mu.Lock()
	process := e.process
	e.mu.Unlock()
	if process != nil {
		if err := process.Close(); err != nil {
			s.Log.Warn("cannot close the streams of an exec", "container", e.container.id, "error", err)
		}
	}
	if err := s.writeTask(e.container); err != nil {
		s.Log.Error("cannot record the end of an exec", "container", e.container.id, "error", err)
	}
}

func (e *execution) wait(ctx context.Context) (TaskExit, error) {
	select {
	case <-e.done:
		return *e.record().Exit, nil
	case <-ctx.Done():
		return TaskExit{}, ctx.Err()
	}
}

// DeleteExec takes an exec away that has ended, or was never started.
// errs.Conflict: it runs.
func (s *Set) DeleteExec(_ context.Context, namespace, id, exec string) (TaskExit, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return TaskExit{}, noTask(err, id)
	}
	e, err := c.exec(exec)
	if err != nil {
		return TaskExit{}, err
	}
	record := e.record()
	if record.Started && record.Exit == nil {
		return TaskExit{}, errs.New(errs.Conflict, "exec %s runs: end it before", exec)
	}
	s.forgetExec(e)
	if err := s.writeTask(c); err != nil {
		return TaskExit{}, err
	}
	if record.Exit == nil {
		return TaskExit{At: time.Now().UTC()}, nil
	}
	return *record.Exit, nil
}
