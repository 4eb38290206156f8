// Package shim runs containers with programs that speak containerd's shim
// protocol, version 2 and 3: runsc's, Kata's, wasm's, and any other. A runtime
// is found by its name, as containerd finds it: io.containerd.NAME.VERSION is
// the program containerd-shim-NAME-VERSION, and a path is itself.
//
// The program's command `start` leaves a process behind, the shim, and says at
// which socket it listens; several containers may get the same one. From then
// on everything is a call over that socket. A shim outlives the node: what is
// needed to find it again stands in a record, written before there is anything
// to find. Ends are told once, from the shim's own answer to Wait or from the
// event that it sends, and stand in the record until they are forgotten.
//
// Every call has a deadline. A shim that hangs does so until its container is
// deleted: then it is killed. One that dies takes its containers along: its
// command `delete` cleans up after each, and they have ended with an unknown
// code, unless the shim had noted the end before.
//
//	<state>/shim/<namespace>/<name>   link to a container's bundle whose own name
//	                                  is another, for those that look for it by
//	                                  the container's
//	<state>/shim/.record/<id>.json    what a next node has to know
//	<state>/shim/.fifo/<id>/          streams of containers whose client
//	                                  named none
//	<bundle>/log                      FIFO of the shim's own log
package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"berth/base/errs"
	"berth/node/container"
)

// Config is what a Driver stands on.
type Config struct {
	State string // folder that is empty after a reboot; ours is <State>/shim
	// Address is the socket of the node that shims are told of, and Events that
	// of the events they send: by custom <Address>.ttrpc.
	Address, Events string
	// Binary is the program that old shims run to tell of events; the node's
	// own when empty.
	Binary string
	// Sockets is where shims are asked to put theirs: at most 42 bytes long;
	// what is longer, or empty, leaves it to them.
	Sockets string
	// Cgroup is where shims are moved, in each hierarchy where that is
	// possible, so that stopping the node's does not stop them; "": they stay.
	Cgroup string
	// Env is added to the node's own environment, which shims get.
	Env []string
	// Exited is told of every end, once; it returns at once.
	Exited func(container.Exit)
	Limits Limits
	Log    *slog.Logger
}

// Limits bound the answers of a shim. What is zero has a default.
type Limits struct {
	Start    time.Duration // of the command start, and of the connection
	Create   time.Duration // making and starting a container, which may be a machine
	Call     time.Duration // everything else
	Kill     time.Duration // from SIGKILL to the end
	Shutdown time.Duration // from the last container to the shim's own end
	Cleanup  time.Duration // of the command delete
}

func (l *Limits) complete() {
	for limit, standard := range map[*time.Duration]time.Duration{
		&l.Start: 30 * time.Second, &l.Create: 2 * time.Minute, &l.Call: 20 * time.Second,
		&l.Kill: 10 * time.Second, &l.Shutdown: 3 * time.Second, &l.Cleanup: 15 * time.Second,
	} {
		if *limit == 0 {
			*limit = standard
		}
	}
}

// soon bounds what others wait for: a node that starts, the metrics of all.
func (l *Limits) soon() time.Duration { return min(5*time.Second, l.Call) }

// Driver is what all shims of a node have in common. It is safe for
// concurrent use.
type Driver struct {
	Config
	dir    string
	starts locks // by group: nobody joins a shim that is being shut down
	ends   locks // by container: taken before that of its group

	mu     sync.Mutex
	tasks  map[string]*task    // containers, by id
	execs  map[string]*process // by id
	shims  map[string]*shim    // by address
	closed bool
	open   bool             // exits are told
	held   []container.Exit // until then

	work sync.WaitGroup // what goes on behind the calls
}

// New makes the driver and its folders. Survivors has to come before the
// first container is made.
func New(c Config) (*Driver, error) {
	c.Limits.complete()
	if c.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("shims: %w", err)
		}
		c.Binary = self
	}
	d := &Driver{
		Config: c, dir: filepath.Join(c.State, "shim"),
		tasks: map[string]*task{}, execs: map[string]*process{}, shims: map[string]*shim{},
	}
	for _, dir := range []string{d.dir, d.records(), d.fifos()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("shims: %w", err)
		}
	}
	return d, nil
}

// Run tells the ends of processes, those since New first, until ctx is done.
// The Set has to know the survivors by then.
func (d *Driver) Run(ctx context.Context) error {
	d.mu.Lock()
	d.open = true
	held := d.held
	d.held = nil
	d.mu.Unlock()
	for _, x := range held {
		d.Exited(x)
	}
	<-ctx.Done()
	return errors.Join(ctx.Err(), d.Close())
}

// tell passes an end on.
func (d *Driver) tell(x container.Exit) {
	d.mu.Lock()
	if !d.open {
		d.held = append(d.held, x)
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	d.Exited(x)
}

// Close lets go of the shims, which go on.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	shims, tasks := values(d.shims), values(d.tasks)
	d.mu.Unlock()
	var failed error
	for _, s := range shims {
		failed = errors.Join(failed, s.close())
	}
	for _, t := range tasks {
		t.letGo()
	}
	d.work.Wait()
	return failed
}

// Runtime is the driver of one runtime. errs.NotFound: its program is not
// here; errs.Invalid: that is no runtime's name.
func (d *Driver) Runtime(name string) (*Runtime, error) {
	binary, err := Find(name)
	if err != nil {
		return nil, err
	}
	return &Runtime{driver: d, name: name, binary: binary}, nil
}

// Has says whether id is that of a container or an exec run by a shim, or of
// one that ended and is not forgotten.
func (d *Driver) Has(id string) bool { return d.process(id) != nil }

// Forget drops an ended process with what is known of its end.
func (d *Driver) Forget(ctx context.Context, id string) error {
	p := d.process(id)
	if p == nil {
		return nil
	}
	if !p.over() {
		return errs.New(errs.Conflict, "process %s has not ended", id)
	}
	if p.exec == "" {
		return d.forget(p.task)
	}
	return d.forgetExec(ctx, p)
}

// Signal sends a signal to the process of a container or of an exec.
// errs.NotFound: it has ended, or there is none.
func (d *Driver) Signal(id string, sig syscall.Signal) error {
	p := d.process(id)
	if p == nil {
		return errs.New(errs.NotFound, "there is no process %s", id)
	}
	return p.kill(p.task.shim.life, sig, false)
}

// Ended is told of an end that a shim sent as an event. Client's names; exec
// "" or that of the container mean the container.
func (d *Driver) Ended(namespace, name, exec string, pid int, code uint32, at time.Time) {
	t := d.named(namespace, name)
	if t == nil {
		return
	}
	p := t.init
	if exec != "" && exec != name {
		p = t.execNamed(exec)
	}
	if p != nil && (p.pid() == 0 || pid == 0 || p.pid() == pid) {
		d.work.Go(func() { p.ended(int(code), true, at) })
	}
}

// Owns says whether a container, by its client's names, is run by a shim.
func (d *Driver) Owns(namespace, name string) bool { return d.named(namespace, name) != nil }

func (d *Driver) process(id string) *process {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.tasks[id]; t != nil && t.settled {
		return t.init
	}
	return d.execs[id]
}

func (d *Driver) named(namespace, name string) *task {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tasks {
		if t.Namespace == namespace && t.Name == name {
			return t
		}
	}
	return nil
}

// task finds a container that is not deleted.
func (d *Driver) task(id string) (*task, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.tasks[id]; t != nil && t.settled && !t.removed() {
		return t, nil
	}
	return nil, errs.New(errs.NotFound, "there is no container %s", id)
}

func (d *Driver) records() string          { return filepath.Join(d.dir, ".record") }
func (d *Driver) record(id string) string  { return filepath.Join(d.records(), id+".json") }
func (d *Driver) fifos() string            { return filepath.Join(d.dir, ".fifo") }
func (d *Driver) link(ns, n string) string { return filepath.Join(d.dir, ns, n) }
func (d *Driver) streams(id string) string { return filepath.Join(d.fifos(), id) }

func values[K comparable, V any](m map[K]V) []V {
	all := make([]V, 0, len(m))
	for _, v := range m {
		all = append(all, v)
	}
	return all
}
