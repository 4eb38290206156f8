package container

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// What a check has that says nothing else, as docker has it.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3

	healthOutput = 4 << 10 // bytes kept of one probe's output
	healthLog    = 5       // probes kept
	// probePrefix begins the ids of execs that are checks.
	probePrefix = "probe-"
)

// The outcomes.
const (
	starting  = "starting"
	healthy   = "healthy"
	unhealthy = "unhealthy"
)

// doctor checks one run of one container. Between probes it is a timer and
// nothing else.
type doctor struct {
	set    *Set
	c      *container
	config spec.HealthConfig
	args   []string
	since  time.Time // of the run

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// watchHealth begins the checks of a container that runs, if it has any.
func (s *Set) watchHealth(c *container) {
	view := c.get()
	args := probeArgs(view.Config.Health)
	if args == nil {
		return
	}
	d := &doctor{set: s, c: c, config: *view.Config.Health, args: args, since: view.State.StartedAt}
	c.mu.Lock()
	if c.run == nil || c.doctor != nil {
		c.mu.Unlock()
		return
	}
	c.doctor = d
	if view.State.Health == nil {
		c.changeLocked(func(c *spec.Container) { c.State.Health = &spec.Health{Status: starting} })
	}
	c.mu.Unlock()
	d.schedule()
}

// probeArgs is the command of a check, nil where there is none.
func probeArgs(h *spec.HealthConfig) []string {
	switch {
	case h == nil || len(h.Test) < 2:
		return nil
	case h.Test[0] == "CMD":
		return h.Test[1:]
	case h.Test[0] == "CMD-SHELL":
		return []string{"/bin/sh", "-c", h.Test[1]}
	}
	return nil
}

// schedule sets the time of the next probe, counted from the end of the last.
func (d *doctor) schedule() {
	wait := firstDuration(d.config.Interval, healthInterval)
	if d.inStartPeriod() {
		wait = min(wait, firstDuration(d.config.StartInterval, healthStartInterval))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.stopped {
		d.timer = time.AfterFunc(wait, func() { d.set.background.Go(d.round) })
	}
}

// inStartPeriod: failures do not count yet.
func (d *doctor) inStartPeriod() bool {
	health := d.c.get().State.Health
	return health != nil && health.Status == starting && time.Since(d.since) < d.config.StartPeriod
}

func (d *doctor) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = true
	if d.timer != nil {
		d.timer.Stop()
	}
}

// round is one probe and what follows of it.
func (d *doctor) round() {
	defer d.schedule()
	if d.c.status() != spec.Running { // paused: nothing can be said
		return
	}
	probe := d.probe()
	if d.set.life.Err() != nil {
		return
	}
	d.note(probe)
}

// probe runs the check once.
func (d *doctor) probe() spec.HealthProbe {
	timeout := firstDuration(d.config.Timeout, healthTimeout)
	ctx, cancel := context.WithTimeout(d.set.life, timeout)
	defer cancel()
	probe := spec.HealthProbe{Start: time.Now().UTC()}
	code, output, err := d.set.run(ctx, d.c, d.args)
	probe.End, probe.ExitCode, probe.Output = time.Now().UTC(), code, output
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		probe.ExitCode = -1
		probe.Output += "the check took longer than " + timeout.String()
	case err != nil:
		probe.ExitCode = startCode(err)
		probe.Output = err.Error()
	}
	return probe
}

// run runs a command in the container to its end, or kills it when ctx ends.
func (s *Set) run(ctx context.Context, c *container, args []string) (code int, output string, err error) {
	e := s.newProbe(c, args)
	defer s.dropProbe(e)
	p, err := s.runExec(ctx, e)
	if err != nil {
		return 0, "", err
	}
	kept := &firstBytes{most: healthOutput}
	var readers sync.WaitGroup
	for _, r := range []io.Reader{p.Stdout, p.Stderr} {
		readers.Go(func() { _, _ = io.Copy(kept, r) }) // what came before it broke is kept
	}
	select {
	case <-e.done:
	case <-ctx.Done():
		err = ctx.Err()
		if killErr := s.Processes.Signal(e.id, syscall.SIGKILL); killErr != nil && !errors.Is(killErr, errs.NotFound) {
			s.Log.WarnContext(ctx, "cannot end a health check", "container", c.id, "error", killErr)
		}
	}
	// Somebody in the background may hold its output open; who waits for that
	// waits for ever.
	unblock := time.AfterFunc(100*time.Millisecond, func() { _ = s.closeExec(e, p) })
	readers.Wait()
	unblock.Stop()
	_ = s.closeExec(e, p)
	return e.get().ExitCode, kept.String(), err
}

func (s *Set) newProbe(c *container, args []string) *execution {
	e := &execution{id: probePrefix + newID(), container: c, done: make(chan struct{}), quiet: true, started: true, told: true}
	e.state = spec.Exec{ID: e.id, Container: c.id, Config: spec.ExecConfig{Command: args}}
	s.execMu.Lock()
	defer s.execMu.Unlock()
	s.execs[e.id] = e
	return e
}

// dropProbe forgets a check that is over; one that does not end, when it does.
func (s *Set) dropProbe(e *execution) {
	forget := func() {
		s.execMu.Lock()
		defer s.execMu.Unlock()
		delete(s.execs, e.id)
	}
	if !e.get().Running {
		forget()
		return
	}
	s.background.Go(func() {
		select {
		case <-e.done:
		case <-s.life.Done():
		}
		forget()
	})
}

// note counts a probe in and tells when the outcome is another.
func (d *doctor) note(probe spec.HealthProbe) {
	d.c.mu.Lock()
	if d.c.doctor != d {
		d.c.mu.Unlock()
		return
	}
	old := *d.c.view.Load().State.Health
	next := d.judge(old, probe)
	view := d.c.changeLocked(func(c *spec.Container) { c.State.Health = &next })
	d.c.mu.Unlock()
	if next.Status != old.Status {
		d.set.db.note(d.c)
		d.set.publish(view, "health_status: "+next.Status)
	}
}

// judge is the health after one more probe.
func (d *doctor) judge(h spec.Health, probe spec.HealthProbe) spec.Health {
	h.Log = append(slices.Clone(h.Log), probe)
	if len(h.Log) > healthLog {
		h.Log = h.Log[len(h.Log)-healthLog:]
	}
	if probe.ExitCode == 0 {
		h.Status, h.FailingStreak = healthy, 0
		return h
	}
	if h.Status == starting && probe.Start.Sub(d.since) < d.config.StartPeriod {
		return h
	}
	h.FailingStreak++
	retries := d.config.Retries
	if retries == 0 {
		retries = healthRetries
	}
	if h.FailingStreak >= retries {
		h.Status = unhealthy
	}
	return h
}

// firstBytes keeps the first bytes written to it and takes the rest for nothing.
type firstBytes struct {
	mu   sync.Mutex
	most int
	kept []byte
}

func (f *firstBytes) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = append(f.kept, p[:min(len(p), f.most-len(f.kept))]...)
	return len(p), nil
}

func (f *firstBytes) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.kept)
}
