package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/base/errs"
	"berth/base/undo"
	"berth/node/container"
)

// ociTypes is how containerd names the types of the OCI runtime spec.
const ociTypes = "types.containerd.io/opencontainers/runtime-spec/1/"

// Exec runs a further process in a running container.
func (r *Runtime) Exec(ctx context.Context, l container.ExecLaunch) (_ *container.Process, err error) {
	t, err := r.driver.task(l.Container)
	if err != nil {
		return nil, err
	}
	e := execRecord{Name: l.Name, Stdin: l.Stdin}
	if e.Name == "" {
		e.Name = l.ID
	}
	if !validName(l.ID) || !validName(e.Name) {
		return nil, errs.New(errs.Invalid, "exec %q: cannot be the name of a file", l.ID)
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			back.Run(ctx, &err)
			err = r.startError(err)
		}
	}()
	p := newProcess(t, l.ID, e.Name, 0)
	p.held = true
	if err := r.driver.addExec(p); err != nil {
		return nil, err
	}
	back.Add("forget exec", func(ctx context.Context) error { return r.driver.dropExec(ctx, p) })
	switch {
	case l.Streams != nil:
		e.Streams = *l.Streams
	case !l.Detach:
		if p.pipes, err = newPipes(r.driver.streams(l.ID), l.Stdin, l.Process.Terminal); err != nil {
			return nil, err
		}
		e.Streams, e.Ours = p.pipes.streams, true
	}
	if err := p.begin(ctx, l, e); err != nil {
		return nil, err
	}
	p.release()
	if l.Process.Terminal && l.Size.Rows > 0 {
		if err := p.resize(ctx, l.Size); err != nil {
			r.driver.Log.DebugContext(ctx, "cannot set the size of a terminal", "exec", l.ID, "error", err)
		}
	}
	return p.handle(), nil
}

// begin has the shim make and start the process.
func (p *process) begin(ctx context.Context, l container.ExecLaunch, e execRecord) error {
	data, err := json.Marshal(l.Process)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	t := p.task
	if err := t.note(func(r *record) { r.Execs[p.id] = e }); err != nil {
		return err
	}
	request := &taskapi.ExecProcessRequest{
		ID: t.Name, ExecID: p.exec, Terminal: l.Process.Terminal,
		Stdin: e.Streams.Stdin, Stdout: e.Streams.Stdout, Stderr: e.Streams.Stderr,
		Spec: &anypb.Any{TypeUrl: ociTypes + "Process", Value: data},
	}
	if l.Process.Terminal {
		request.Stderr = ""
	}
	if err := p.call(ctx, "Exec", request); err != nil {
		return err
	}
	var answer taskapi.StartResponse
	if err := t.shim.call(ctx, t.driver.Limits.Create, "Start", &taskapi.StartRequest{ID: t.Name, ExecID: p.exec}, &answer); err != nil {
		return err
	}
	p.setPid(int(answer.GetPid()))
	if p.pipes != nil {
		if err := p.attachPipes(nil); err != nil {
			return err
		}
	}
	p.follow()
	return t.note(func(r *record) {
		e := r.Execs[p.id]
		e.Pid = p.pid()
		r.Execs[p.id] = e
	})
}

// addExec makes an exec known. errs.Exists: its id is taken.
func (d *Driver) addExec(p *process) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tasks[p.id] != nil || d.execs[p.id] != nil {
		return errs.New(errs.Exists, "exec %s is there already", p.id)
	}
	d.execs[p.id] = p
	return nil
}

// dropExec takes back an exec that could not be started.
func (d *Driver) dropExec(ctx context.Context, p *process) error {
	if p.pid() != 0 {
		if err := p.kill(ctx, 9, false); err != nil && !errors.Is(err, errs.NotFound) {
			d.Log.WarnContext(ctx, "cannot end an exec", "exec", p.id, "error", err)
		}
	}
	return d.forgetExec(ctx, p)
}

// reopen takes the node's ends of the streams of an earlier node's process.
func (p *process) reopen(streams container.Streams, l *container.LogFile) error {
	p.pipes = &pipes{streams: streams}
	if err := p.attachPipes(l); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
