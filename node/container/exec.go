package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/spec"
)

// execAge is how long an exec stays known after its end.
const execAge = 10 * time.Minute

// ExecSession is the node's end of a process made by exec.
type ExecSession struct {
	ID         string
	Stdin      io.WriteCloser // nil where it was not asked for; Close ends the process's stdin
	Stdout     io.Reader      // the terminal, where there is one; nil when detached
	Stderr     io.Reader      // nil with a terminal, and when detached
	CloseStdin func(ctx context.Context) error
	Resize     func(size spec.Size) error
	// Close lets go of the descriptors; it does not end the process.
	Close func() error
}

// CreateExec prepares a further process in a running container.
// errs.Conflict: it does not run, or is paused.
func (s *Set) CreateExec(_ context.Context, ref string, config spec.ExecConfig) (spec.Exec, error) {
	c, err := s.find(ref)
	if err != nil {
		return spec.Exec{}, err
	}
	if len(config.Command) == 0 || config.Command[0] == "" {
		return spec.Exec{}, errs.New(errs.Invalid, "exec in container %s: no command", c.name())
	}
	if err := checkWorkDir(config.WorkDir); err != nil {
		return spec.Exec{}, err
	}
	if err := running(c.get()); err != nil {
		return spec.Exec{}, err
	}
	e := s.newExec(c, config)
	s.publish(c.get(), "exec_create: "+strings.Join(config.Command, " "), "execID", e.id)
	return e.get(), nil
}

func (s *Set) newExec(c *container, config spec.ExecConfig) *execution {
	e := &execution{id: newID(), container: c, done: make(chan struct{})}
	e.state = spec.Exec{ID: e.id, Container: c.get().ID, Config: config}
	s.execMu.Lock()
	defer s.execMu.Unlock()
	for id, old := range s.execs {
		if old.outdated() {
			delete(s.execs, id)
		}
	}
	s.execs[e.id] = e
	return e
}

// StartExec runs it, once. The error holds a *StartError where the command
// cannot be started. The caller closes the session.
func (s *Set) StartExec(ctx context.Context, id string) (*ExecSession, error) {
	e, err := s.findExec(id)
	if err != nil {
		return nil, err
	}
	if !e.claim() {
		return nil, errs.New(errs.Conflict, "exec %s has been started before", id)
	}
	p, err := s.runExec(ctx, e)
	if err != nil {
		e.end(notStarted(err))
		return nil, fmt.Errorf("exec in container %s: %w", e.container.name(), err)
	}
	s.tellExecStart(e)
	return s.session(e, p), nil
}

// tellExecStart tells of the start, and then of an end that was faster.
func (s *Set) tellExecStart(e *execution) {
	state := e.get()
	if !e.quiet {
		s.publish(e.container.get(), "exec_start: "+strings.Join(state.Config.Command, " "), "execID", e.name(), "pid", strconv.Itoa(e.lastPid()))
	}
	e.mu.Lock()
	e.told = true
	early := e.early
	e.mu.Unlock()
	if early != nil {
		s.endExec(e, *early)
	}
}

// runExec starts the process. The lock is not held meanwhile: a container
// that ends takes its execs along.
func (s *Set) runExec(ctx context.Context, e *execution) (*Process, error) {
	before := e.container.current()
	view := e.container.get()
	if err := running(view); err != nil {
		return nil, err
	}
	p, err := s.launchExec(ctx, e, view)
	if err != nil && (before == nil || before.over.Load() || e.container.current() != before) {
		return nil, errs.New(errs.Conflict, "container %s has ended: %w", view.Name, err)
	}
	return p, err
}

func (s *Set) launchExec(ctx context.Context, e *execution, view *spec.Container) (*Process, error) {
	r, err := s.runtime(view)
	if err != nil {
		return nil, err
	}
	launch, err := s.execLaunch(e, view)
	if err != nil {
		return nil, err
	}
	p, err := r.Exec(ctx, launch)
	if err != nil {
		return nil, err
	}
	e.began(p)
	return p, nil
}

// execLaunch is what the runtime is asked for.
func (s *Set) execLaunch(e *execution, view *spec.Container) (ExecLaunch, error) {
	config, c := e.get().Config, e.container
	l := ExecLaunch{ID: e.id, Container: c.id, Stdin: config.OpenStdin, Detach: config.Detach, Size: config.Size}
	if e.request != nil {
		process, err := e.request.process()
		l.Process, l.Streams, l.Name, l.Namespace = process, &e.request.Streams, e.request.ID, orElse(view.Namespace, spec.DefaultNamespace)
		return l, err
	}
	in := bundle.ExecInput{Container: *view, Image: c.image, Host: s.Host, Rootfs: s.rootDir(c.id), Config: config}
	if t := c.task.Load(); t != nil {
		in.Rootfs = t.Root
	}
	process, err := bundle.Exec(in)
	if g := c.given.Load(); g != nil && err == nil {
		err = asGiven(process, g, config)
	}
	l.Process = process
	return l, err
}

func (s *Set) session(e *execution, p *Process) *ExecSession {
	session := &ExecSession{
		ID:         e.id,
		CloseStdin: p.CloseStdin,
		Resize:     func(size spec.Size) error { return s.resize(s.life, e.container, p.Console, e.id, size) },
		Close:      func() error { return s.closeExec(e, p) },
	}
	switch {
	case p.Console != nil:
		session.Stdin, session.Stdout = p.Console, terminal{p.Console}
	default:
		if p.Stdin != nil {
			session.Stdin = stdinOf{p.Stdin, p.CloseStdin, context.WithoutCancel(s.life)}
		}
		if p.Stdout != nil {
			session.Stdout, session.Stderr = p.Stdout, p.Stderr
		}
	}
	if p.Stdout == nil && p.Console == nil { // detached: nothing is read
		s.letGo(e)
	}
	return session
}

// closeExec closes our descriptors of the process. One that goes on, and writes,
// learns that nobody reads it: else it would wait for ever.
func (s *Set) closeExec(e *execution, p *Process) error {
	e.mu.Lock()
	e.console = nil
	goesOn := !e.exited
	e.mu.Unlock()
	err := p.Close()
	if goesOn && p.CloseOutput != nil {
		if failed := p.CloseOutput(s.life); failed != nil && errs.KindOf(failed) != errs.NotFound { // it may just have ended
			err = errors.Join(err, failed)
		}
	}
	s.letGo(e)
	return err
}

// WaitExec waits for the end of a started exec.
func (s *Set) WaitExec(ctx context.Context, id string) (spec.Exec, error) {
	e, err := s.findExec(id)
	if err != nil {
		return spec.Exec{}, err
	}
	select {
	case <-e.done:
		return e.get(), nil
	case <-ctx.Done():
		return spec.Exec{}, ctx.Err()
	}
}

// ResizeExec sets the size of an exec's terminal.
func (s *Set) ResizeExec(ctx context.Context, id string, size spec.Size) error {
	e, err := s.findExec(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return s.resize(ctx, e.container, e.console, e.id, size)
}

// GetExec returns one exec, for some minutes after its end too.
func (s *Set) GetExec(_ context.Context, id string) (spec.Exec, error) {
	e, err := s.findExec(id)
	if err != nil {
		return spec.Exec{}, err
	}
	return e.get(), nil
}

func (s *Set) findExec(id string) (*execution, error) {
	s.execMu.Lock()
	defer s.execMu.Unlock()
	if e := s.execs[id]; e != nil {
		return e, nil
	}
	return nil, errs.New(errs.NotFound, "no such exec: %s", id)
}

// execsOf are the ids of the execs that run in a container.
func (s *Set) execsOf(id string) []string {
	s.execMu.Lock()
	defer s.execMu.Unlock()
	var ids []string
	for _, e := range s.execs {
		if e.container.id == id && !e.quiet && e.get().Running {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// dropExecs forgets the ended execs of a container that is gone.
func (s *Set) dropExecs(id string) {
	s.execMu.Lock()
	defer s.execMu.Unlock()
	for key, e := range s.execs {
		if e.container.id == id && !e.get().Running {
			delete(s.execs, key)
		}
	}
}

// execEnded notes the end of an exec; false where x is not of one.
func (s *Set) execEnded(x Exit) bool {
	e, err := s.findExec(x.ID)
	if err != nil {
		return false
	}
	if !e.heldBack(x) {
		s.endExec(e, x)
	}
	return true
}

// endExec notes and tells the end of an exec whose start was told.
func (s *Set) endExec(e *execution, x Exit) {
	if e.note(x) {
		defer close(e.done)
	}
	if e.request != nil {
		s.endTaskExec(e)
	}
	if !e.quiet {
		s.publish(e.container.get(), "exec_die", "execID", e.name(), "exitCode", strconv.Itoa(e.get().ExitCode),
			"pid", strconv.Itoa(e.lastPid()), "exitedAt", x.At.UTC().Format(time.RFC3339Nano))
	}
	e.mu.Lock()
	e.exited = true
	finished := e.closed
	e.mu.Unlock()
	s.dropUnwanted(e)
	if finished {
		s.background.Go(func() { s.drop(e.id) })
	}
}

// letGo says that nobody reads the output of an exec any more.
func (s *Set) letGo(e *execution) {
	e.mu.Lock()
	finished := e.exited && !e.closed
	e.closed = true
	e.mu.Unlock()
	if finished {
		s.background.Go(func() { s.drop(e.id) })
	}
}
