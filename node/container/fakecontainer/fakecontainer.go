// Package fakecontainer is a container runtime in memory, for tests. Its
// processes understand a few commands, named as those that do the same in a
// real container:
//
//	true, false, echo …, cat, sleep <seconds>
//	sh -c "exit <n>"
//	sh -c "trap 'exit <n>' TERM; …"    runs until TERM comes
//
// All but the last, being process 1 of their namespace, do not heed TERM.
// What is in /etc cannot be run (126), and anything else is not there (127).
package fakecontainer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
)

// Runtime is a container.Runtime, and the owner of its processes too.
type Runtime struct {
	// Exited is told of ends, from goroutines of their own.
	Exited func(container.Exit)
	// Fail, where set, is asked before each operation, "run", "delete" and so
	// on: what it returns is what the operation returns.
	Fail func(op, id string) error
	// Before, where set, is called before each operation, and may take its time.
	Before func(ctx context.Context, op, id string)
	// Slow is how long a container's process is still the runtime's after its
	// start: it does not heed TERM until then.
	Slow time.Duration

	mu        sync.Mutex
	lastPid   int
	processes map[string]*process // containers and execs
	updates   map[string]*specs.LinuxResources
	told      sync.WaitGroup
}

// process is one that runs, or that has ended and was not forgotten.
type process struct {
	container.Process
	owner   string // the container it is in; its own id for a container's first
	script  script
	launch  container.Launch
	exec    container.ExecLaunch
	later   int // pid that it has when it is started
	config  []byte
	started bool
	paused  bool
	begun   time.Time
	deleted bool
	exit    *container.Exit
	in      *io.PipeReader // of cat's stdin
	out     *io.PipeWriter // of cat's output, in an exec
	timer   *time.Timer
}

var _ container.Runtime = (*Runtime)(nil)

// firstPid is above what a kernel gives out: nobody's process is meant.
const firstPid = 5_000_000

// New makes a runtime without containers.
func New() *Runtime {
	return &Runtime{processes: map[string]*process{}, updates: map[string]*specs.LinuxResources{}, lastPid: firstPid}
}

// Name is fake.
func (r *Runtime) Name() string { return "fake" }

// Version is made up.
func (r *Runtime) Version(context.Context) (string, error) { return "fake 1.0", nil }

func (r *Runtime) fail(ctx context.Context, op, id string) error {
	if r.Before != nil {
		r.Before(ctx, op, id)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.Fail == nil {
		return nil
	}
	return r.Fail(op, id)
}

// Run makes a container and starts its process.
func (r *Runtime) Run(ctx context.Context, l container.Launch) (*container.Process, error) {
	if err := r.fail(ctx, "run", l.ID); err != nil {
		return nil, err
	}
	p, err := r.add(l)
	if err != nil {
		return nil, err
	}
	r.begin(p)
	return &p.Process, nil
}

// Create makes a container whose process waits for Start.
func (r *Runtime) Create(ctx context.Context, l container.Launch) (*container.Process, error) {
	if err := r.fail(ctx, "create", l.ID); err != nil {
		return nil, err
	}
	p, err := r.add(l)
	if err != nil {
		return nil, err
	}
	made := p.Process
	return &made, nil
}

// Start lets the process of a created container go.
func (r *Runtime) Start(ctx context.Context, id string) error {
	if err := r.fail(ctx, "start", id); err != nil {
		return err
	}
	p, err := r.running(id)
	if err != nil {
		return err
	}
	if p.started {
		return errs.New(errs.Conflict, "container %s was started before", id)
	}
	r.begin(p)
	return nil
}

func (r *Runtime) add(l container.Launch) (*process, error) {
	config, args, err := readBundle(l.Bundle)
	if err != nil {
		return nil, err
	}
	s, err := parse(args)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.processes[l.ID]; old != nil {
		return nil, errs.New(errs.Exists, "there is a container %s", l.ID)
	}
	p := r.newProcess(l.ID, l.ID, s)
	p.script.log, p.launch, p.config = l.Log.Path, l, config
	if l.Restore != "" { // there is no process before its start
		p.later, p.Pid = p.Pid, 0
	}
	if l.Streams != nil {
		r.processes[l.ID] = p
		return p, nil
	}
	if l.TTY {
		if p.Console, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
			return nil, err
		}
	} else if l.Stdin {
		p.openStdin()
	}
	r.processes[l.ID] = p
	return p, nil
}

func (r *Runtime) newProcess(id, owner string, s script) *process {
	r.lastPid++
	return &process{Process: container.Process{ID: id, Pid: r.lastPid}, owner: owner, script: s}
}

func readBundle(dir string) (config []byte, args []string, err error) {
	config, err = os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(config, &s); err != nil {
		return nil, nil, err
	}
	if s.Process == nil {
		return nil, nil, errors.New("config.json has no process")
	}
	return config, s.Process.Args, nil
}

// Bundle is the config.json that a container was made of.
func (r *Runtime) Bundle(id string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.processes[id]; p != nil {
		return p.config
	}
	return nil
}

// ExecNamed is the id of an exec that a client has called name.
func (r *Runtime) ExecNamed(of, name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.processes {
		if p.owner == of && p.exec.Name == name {
			return id
		}
	}
	return ""
}

// Launched is what a container was made of.
func (r *Runtime) Launched(id string) container.Launch {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.processes[id]; p != nil {
		return p.launch
	}
	return container.Launch{}
}

// Exec runs a further process in a running container.
func (r *Runtime) Exec(ctx context.Context, l container.ExecLaunch) (*container.Process, error) {
	if err := r.fail(ctx, "exec", l.ID); err != nil {
		return nil, err
	}
	if _, err := r.running(l.Container); err != nil {
		return nil, err
	}
	s, err := parse(l.Process.Args)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	p := r.newProcess(l.ID, l.Container, s)
	p.exec = l
	if l.Streams != nil { // what it says goes nowhere
	} else if l.Process.Terminal {
		if p.Console, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
			r.mu.Unlock()
			return nil, err
		}
	} else {
		if !l.Detach {
			p.openOutput()
		}
		if l.Stdin {
			p.openStdin()
		}
	}
	r.processes[l.ID] = p
	r.mu.Unlock()
	r.begin(p)
	return &p.Process, nil
}

// Signal sends sig to the first process, or to all.
func (r *Runtime) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	if err := r.fail(ctx, "signal", id); err != nil {
		return err
	}
	if _, err := r.running(id); err != nil {
		return err
	}
	return r.signal(id, sig, all)
}

// Pause freezes the container.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	return r.freeze(ctx, "pause", id, true)
}

// Resume thaws what Pause froze.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	return r.freeze(ctx, "resume", id, false)
}

func (r *Runtime) freeze(ctx context.Context, op, id string, on bool) error {
	if err := r.fail(ctx, op, id); err != nil {
		return err
	}
	p, err := r.running(id)
	if err != nil {
		return err
	}
	r.mu.Lock()
	p.paused = on
	r.mu.Unlock()
	return nil
}

// Update keeps the limits for Updated.
func (r *Runtime) Update(ctx context.Context, id string, res *specs.LinuxResources) error {
	if err := r.fail(ctx, "update", id); err != nil {
		return err
	}
	if _, err := r.running(id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.updates[id] = res
	return nil
}

// Updated is what Update was last given for a container.
func (r *Runtime) Updated(id string) *specs.LinuxResources {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.updates[id]
}

// Delete ends what still runs of the container.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if err := r.fail(ctx, "delete", id); err != nil {
		return err
	}
	r.mu.Lock()
	var ids []string
	for key, p := range r.processes {
		if p.owner == id {
			ids = append(ids, key)
			p.deleted = true
		}
	}
	r.mu.Unlock()
	for _, key := range ids {
		r.End(key, 128+int(syscall.SIGKILL))
	}
	return nil
}

// Pids are the processes of the container.
func (r *Runtime) Pids(ctx context.Context, id string) ([]int, error) {
	if err := r.fail(ctx, "pids", id); err != nil {
		return nil, err
	}
	if _, err := r.running(id); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var pids []int
	for _, p := range r.processes {
		if p.owner == id && p.exit == nil {
			pids = append(pids, p.Pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

func (r *Runtime) running(id string) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.processes[id]
	if p == nil || p.exit != nil || p.deleted {
		return nil, errs.New(errs.NotFound, "there is no running container %s", id)
	}
	return p, nil
}

// Left names what is there of containers: those not deleted, and processes
// not forgotten.
func (r *Runtime) Left() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var left []string
	for id, p := range r.processes {
		what := "process"
		if p.owner == id && !p.deleted {
			what = "container"
		}
		left = append(left, fmt.Sprintf("%s %.12s", what, id))
	}
	slices.Sort(left)
	return left
}
