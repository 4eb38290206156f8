package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/base/errs"
	"berth/base/undo"
	"berth/node/container"
	"berth/spec"
)

// Run makes a container and starts its process.
func (r *Runtime) Run(ctx context.Context, l container.Launch) (*container.Process, error) {
	return r.driver.launch(ctx, r, l, true)
}

// Create makes a container whose process waits for Start.
func (r *Runtime) Create(ctx context.Context, l container.Launch) (*container.Process, error) {
	return r.driver.launch(ctx, r, l, false)
}

func (d *Driver) launch(ctx context.Context, r *Runtime, l container.Launch, start bool) (_ *container.Process, err error) {
	rec, err := r.recordOf(l)
	if err != nil {
		return nil, err
	}
	t := d.newTask(rec)
	if err := d.add(t); err != nil {
		return nil, err
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			back.Run(ctx, &err)
			err = r.startError(err)
		}
	}()
	back.Add("delete container", func(ctx context.Context) error { return d.discard(ctx, t) })
	t.init.held = true
	if err := d.prepare(t, l); err != nil {
		return nil, err
	}
	if err := d.attach(ctx, t, l); err != nil {
		return nil, err
	}
	if err := t.make(ctx, l); err != nil {
		return nil, err
	}
	if start {
		if err := t.start(ctx); err != nil {
			return nil, err
		}
	}
	if err := t.settle(); err != nil {
		return nil, err
	}
	t.init.release()
	if l.TTY && l.Size.Rows > 0 {
		if err := t.init.resize(ctx, l.Size); err != nil {
			d.Log.DebugContext(ctx, "cannot set the size of a terminal", "container", t.ID, "error", err)
		}
	}
	return t.init.handle(), nil
}

// recordOf is the record of a container that is to be made.
func (r *Runtime) recordOf(l container.Launch) (record, error) {
	rec := record{
		ID: l.ID, Namespace: l.Namespace, Name: l.Name, Runtime: r.name, Binary: r.binary, Bundle: l.Bundle,
		TTY: l.TTY, Stdin: l.Stdin, Mounted: len(l.Rootfs) > 0,
	}
	if rec.Name == "" {
		rec.Name = l.ID
	}
	if rec.Namespace == "" {
		rec.Namespace = spec.DefaultNamespace
	}
	for _, name := range []string{rec.ID, rec.Namespace, rec.Name} {
		if !validName(name) {
			return record{}, errs.New(errs.Invalid, "container %q: cannot be the name of a file", name)
		}
	}
	if l.Streams != nil {
		rec.Streams = *l.Streams
	} else if l.Log.Path != "" {
		rec.Log = &l.Log
	}
	var err error
	rec.Group, err = groupOf(rec)
	return rec, err
}

// groupOf is the name under which shims run several containers in one
// process, as the bundle's annotations say it.
func groupOf(r record) (string, error) {
	data, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return "", fmt.Errorf("bundle of container %s: %w", r.ID, err)
	}
	var config struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return "", errs.New(errs.Invalid, "bundle of container %s: %w", r.ID, err)
	}
	for _, key := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if group := config.Annotations[key]; group != "" {
			return group, nil
		}
	}
	return r.Name, nil
}

// prepare makes all that the shim finds in the folder where it runs.
func (d *Driver) prepare(t *task, l container.Launch) error {
	if err := d.save(t.snapshot()); err != nil {
		return err
	}
	if err := t.link(); err != nil {
		return fmt.Errorf("folder of shims: %w", err)
	}
	folders := []string{"work"}
	if t.Mounted {
		folders = append(folders, "rootfs")
	}
	for _, name := range folders {
		if err := os.Mkdir(filepath.Join(t.Bundle, name), 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("bundle of container %s: %w", t.ID, err)
		}
	}
	if err := t.listen(); err != nil {
		return err
	}
	if l.Streams != nil {
		return nil
	}
	p, err := newPipes(d.streams(t.ID), l.Stdin, l.TTY)
	if err != nil {
		return err
	}
	t.init.pipes, t.Streams = p, p.streams
	return nil
}

// link makes the link of a bundle that has another name.
func (t *task) link() error {
	link := t.named()
	if link == t.Bundle {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o711); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) { // nobody's: add has looked
		return err
	}
	return os.Symlink(t.Bundle, link)
}

// attach starts a shim for the container, or joins the one of its group.
func (d *Driver) attach(ctx context.Context, t *task, l container.Launch) error {
	unlock, err := d.starts.lock(ctx, t.Namespace+"/"+t.Group)
	if err != nil {
		return fmt.Errorf("shim of container %s: %w", t.ID, err)
	}
	defer unlock()
	i := t.invocation()
	i.options = l.Options
	e, err := d.start(ctx, i)
	if err != nil {
		return err
	}
	if err := t.note(func(r *record) { r.Endpoint = e }); err != nil {
		return err
	}
	t.shim, err = d.connect(ctx, e, t)
	return err
}

// make has the shim make the container.
func (t *task) make(ctx context.Context, l container.Launch) error {
	request := &taskapi.CreateTaskRequest{
		ID: t.Name, Bundle: t.Bundle, Terminal: l.TTY, Checkpoint: l.Restore,
		Stdin: t.Streams.Stdin, Stdout: t.Streams.Stdout, Stderr: t.Streams.Stderr,
	}
	if l.TTY {
		request.Stderr = ""
	}
	if l.Options != nil {
		request.Options = &anypb.Any{TypeUrl: l.Options.Type, Value: l.Options.Value}
	}
	for _, m := range l.Rootfs {
		request.Rootfs = append(request.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	var answer taskapi.CreateTaskResponse
	if err := t.shim.call(ctx, t.driver.Limits.Create, "Create", request, &answer); err != nil {
		return err
	}
	t.init.setPid(int(answer.GetPid()))
	if t.init.pipes != nil {
		if err := t.init.attachPipes(t.Log); err != nil {
			return err
		}
	}
	t.init.follow()
	return nil
}

// start has the shim let the process of a container go.
func (t *task) start(ctx context.Context) error {
	var answer taskapi.StartResponse
	err := t.shim.call(ctx, t.driver.Limits.Create, "Start", &taskapi.StartRequest{ID: t.Name}, &answer)
	if err != nil {
		return err
	}
	if pid := int(answer.GetPid()); pid != 0 && pid != t.init.pid() { // a restored one has none before
		t.init.setPid(pid)
		return t.note(func(r *record) { r.Pid = pid })
	}
	return nil
}

// settle makes a container known as one that lives, unless its shim has died
// meanwhile.
func (t *task) settle() error {
	pid := t.init.pid()
	if err := t.note(func(r *record) { r.Made, r.Pid = true, pid }); err != nil {
		return err
	}
	t.driver.mu.Lock()
	defer t.driver.mu.Unlock()
	if t.shim.dead() {
		return errs.New(errs.Unavailable, "the shim of container %s has died", t.ID)
	}
	t.settled = true
	return nil
}

// attachPipes takes the node's ends of a process's streams.
func (p *process) attachPipes(l *container.LogFile) error {
	if err := p.pipes.attach(); err != nil {
		return err
	}
	switch {
	case l == nil && p.exec == "": // nobody wants to know
		for _, f := range []*os.File{p.pipes.out, p.pipes.err} {
			if out := p.pipes.output(f); out != nil {
				_ = out.Close()
			}
		}
		return nil
	case l == nil:
		return nil
	}
	return p.pipes.copyTo(*l, p.task.driver.Log)
}

// handle is what the driver's user gets of a process.
func (p *process) handle() *container.Process {
	h := &container.Process{ID: p.id, Pid: p.pid(), CloseStdin: p.closeStdin}
	if p.pipes == nil {
		return h
	}
	if p.pipes.in != nil {
		h.Stdin = p.pipes.in
	}
	if p.exec != "" {
		h.Stdout, h.Stderr = p.pipes.output(p.pipes.out), p.pipes.output(p.pipes.err)
	}
	return h
}

// closeStdin lets the process see the end of its stdin.
func (p *process) closeStdin(ctx context.Context) error {
	p.mu.Lock()
	pipes := p.pipes
	p.mu.Unlock()
	if pipes != nil && pipes.in != nil {
		if err := pipes.in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("close stdin: %w", err)
		}
	}
	err := p.call(ctx, "CloseIO", &taskapi.CloseIORequest{ID: p.task.Name, ExecID: p.exec, Stdin: true})
	if p.over() || errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}
