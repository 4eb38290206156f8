package shim

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	types "github.com/containerd/containerd/api/types/task"

	"berth/base/errs"
	"berth/node/container"
)

// atOnce is how many shims are asked at the same time.
const atOnce = 16

// Survivors finds what an earlier node left: the containers and execs that
// run, and those that have ended and were not forgotten, with their ends.
// What was only half made is taken away. A shim that is gone has taken its
// containers along; one that does not answer in time is taken for one that
// runs.
func (d *Driver) Survivors(ctx context.Context) ([]container.Survivor, error) {
	records, err := d.load(ctx)
	if err != nil {
		return nil, err
	}
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		found []container.Survivor
		turns = make(chan struct{}, atOnce)
	)
	for _, r := range records {
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			survivors := d.recover(ctx, r)
			mu.Lock()
			defer mu.Unlock()
			found = append(found, survivors...)
		})
	}
	all.Wait()
	slices.SortFunc(found, func(a, b container.Survivor) int {
		if a.Process.ID < b.Process.ID {
			return -1
		}
		return 1
	})
	return found, ctx.Err()
}

// recover takes over one container.
func (d *Driver) recover(ctx context.Context, r record) []container.Survivor {
	t := d.newTask(r)
	if err := d.add(t); err != nil {
		d.Log.ErrorContext(ctx, "cannot take over a container", "container", r.ID, "error", err)
		return nil
	}
	if r.Deleted {
		d.settled(t)
		if r.Exit == nil {
			d.complain(ctx, t, d.drop(t))
			return nil
		}
		t.init.mark(*r.Exit)
		return []container.Survivor{t.init.survivor(r.Exit)}
	}
	if err := t.listen(); err != nil {
		d.Log.WarnContext(ctx, "the log of a shim is not read", "container", t.ID, "error", err)
	}
	t.init.held = true // what is found here, Survivors tells
	err := d.reconnect(ctx, t)
	if !r.Made {
		if err == nil {
			t.init.follow()
		}
		d.complain(ctx, t, d.discard(ctx, t))
		return nil
	}
	if err != nil {
		d.Log.WarnContext(ctx, "the shim of a container is gone", "container", t.ID, "error", err)
		d.killStrays(t)
		t.shim = d.deadShim(ctx, t)
	}
	survivors := []container.Survivor{t.takeOver(ctx, t.init, r.Streams, r.Log, r.Exit)}
	for id, e := range r.Execs {
		p := newProcess(t, id, e.Name, e.Pid)
		p.held = true
		if d.addExec(p) != nil {
			continue
		}
		var ours container.Streams
		if e.Ours {
			ours = e.Streams
		}
		survivors = append(survivors, t.takeOver(ctx, p, ours, nil, e.Exit))
	}
	d.settled(t)
	if t.shim.dead() { // also: since it was asked
		t.bury(ctx, time.Now(), false)
		for i := range survivors {
			p := d.process(survivors[i].Process.ID)
			survivors[i].Exit = p.exit
		}
	}
	for _, v := range survivors {
		p := d.process(v.Process.ID)
		p.mu.Lock()
		p.held = false
		p.mu.Unlock()
		if v.Exit == nil {
			p.follow()
		}
	}
	return survivors
}

// reconnect finds the shim of a container again.
func (d *Driver) reconnect(ctx context.Context, t *task) error {
	if t.Endpoint.Address == "" {
		return errs.New(errs.NotFound, "it was not known yet")
	}
	unlock, err := d.starts.lock(ctx, t.Namespace+"/"+t.Group)
	if err != nil {
		return err
	}
	defer unlock()
	t.shim, err = d.connect(ctx, t.Endpoint, t)
	return err
}

// takeOver asks the shim how a process is.
func (t *task) takeOver(ctx context.Context, p *process, ours container.Streams, log *container.LogFile, exit *container.Exit) container.Survivor {
	d := t.driver
	if exit == nil && !t.shim.dead() {
		if exit = p.look(ctx); exit == nil {
			p.setPid(p.pid()) // it is still that one
		}
	}
	if ours.Stdout != "" && (log != nil || p.exec != "") {
		if err := p.reopen(ours, log); err != nil {
			d.Log.WarnContext(ctx, "cannot go on with the streams of a process", "id", p.id, "error", err)
		}
	}
	if exit != nil {
		p.mark(*exit)
	}
	return p.survivor(exit)
}

// look asks the shim whether the process has ended; nil where it has not, or
// the shim does not say.
func (p *process) look(ctx context.Context) *container.Exit {
	var state taskapi.StateResponse
	d := p.task.driver
	err := p.task.shim.call(ctx, d.Limits.soon(), "State", &taskapi.StateRequest{ID: p.task.Name, ExecID: p.exec}, &state)
	switch {
	case errors.Is(err, errs.NotFound):
		return &container.Exit{ID: p.id, Pid: p.pid(), Code: unknownCode, At: time.Now()}
	case err != nil:
		d.Log.WarnContext(ctx, "a shim does not say how a process is", "id", p.id, "error", err)
		return nil
	case state.GetStatus() == types.Status_STOPPED:
		return &container.Exit{ID: p.id, Pid: p.pid(), Code: int(state.GetExitStatus()), Known: true, At: state.GetExitedAt().AsTime()}
	}
	return nil
}

// mark notes an end that is told otherwise.
func (p *process) mark(x container.Exit) {
	p.mu.Lock()
	p.exit = &x
	close(p.done)
	p.mu.Unlock()
}

func (p *process) survivor(exit *container.Exit) container.Survivor {
	return container.Survivor{Process: p.handle(), Exit: exit}
}

func (d *Driver) settled(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t.settled = true
}

func (d *Driver) complain(ctx context.Context, t *task, err error) {
	if err != nil {
		d.Log.WarnContext(ctx, "cannot take away a container that was left", "container", t.ID, "error", err)
	}
}

// deadShim stands for one that was gone before we came.
func (d *Driver) deadShim(ctx context.Context, t *task) *shim {
	s := &shim{address: t.Endpoint.Address, driver: d, gone: make(chan struct{}), tasks: map[*task]bool{}, leaving: true}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	s.end()
	close(s.gone)
	return s
}
