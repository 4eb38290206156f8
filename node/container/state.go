package container

import (
	"sync"
	"sync/atomic"
	"time"

	"berth/base/errs"
	"berth/base/group"
	"berth/spec"
)

// container is one container in memory.
type container struct {
	id   string
	op   group.Lock
	root rootfs

	view  atomic.Pointer[spec.Container] // what it points to is never changed
	image spec.ImageConfig               // of the image it was made from; never changed
	given atomic.Pointer[spec.Given]     // what its client wrote, where one did; what it points to is never changed
	task  atomic.Pointer[task]           // of a given one, from CreateTask to DeleteTask; likewise
	files sync.Mutex                     // writing the task's file
	shown atomic.Pointer[shownSpec]      // of one of the node's own, to clients

	gone atomic.Bool // removed: no record must be written any more
	// removed is set when all is over, and nobody finds it any more.
	removed atomic.Bool
	// litter is set while something of an ended run could not be put away.
	litter atomic.Bool

	mu       sync.Mutex
	changed  chan struct{} // closed and made anew at each change of state
	run      *run          // of the process now; nil while there is none
	end      *ending       // of the run now, or of the next one
	retry    *time.Timer   // of a restart that waits for its back-off
	retries  int           // restarts in a row without a good run between
	rebooted bool          // its record is from an earlier boot
	removing bool          // somebody is taking it away
	// settling: its process has ended, and that is about to be recorded and told.
	settling bool
	// dropVolumes: its removal takes its own volumes along.
	dropVolumes bool
	keepers     int     // who wants it to stay when it ends, AutoRemove or not
	doctor      *doctor // of the health checks of this run
	// request is what the last task of a given one was made of; nil before.
	request  *TaskRequest
	recorded *spec.Given           // what is on record of given
	execs    map[string]*execution // that clients added to the task, by their ids
	// dismissed: a client has deleted the ended task of one of ours.
	dismissed bool
}

// run is one life of a container's process.
type run struct {
	process *Process
	since   time.Time
	over    atomic.Bool // it has ended, and what it needed is being put away
}

// ending is how a run ends.
type ending struct {
	done chan struct{} // closed when it has, or when there will be none
	exit spec.Exit
	err  error // why there will be none
}

func newEnding() *ending { return &ending{done: make(chan struct{})} }

func newContainer(r record) *container {
	c := &container{
		id:      keyOf(&r.Container),
		op:      group.NewLock(),
		image:   r.Image,
		changed: make(chan struct{}),
		end:     newEnding(),
		retries: r.Retries,

		dropVolumes: r.DropVolumes,
		request:     r.Request,
		dismissed:   r.Dismissed,
		execs:       map[string]*execution{},
	}
	c.view.Store(&r.Container)
	c.given.Store(r.given)
	c.recorded = r.given
	return c
}

// get returns the container as it is now. It must not be changed.
func (c *container) get() *spec.Container { return c.view.Load() }

func (c *container) name() string { return c.get().Name }

func (c *container) status() spec.State { return c.get().State.Status }

func (c *container) isGone() bool { return c.gone.Load() }

// change makes a new view out of the last one. What maps and slices hold is
// shared with the last one: fn replaces them whole.
func (c *container) change(fn func(*spec.Container)) *spec.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changeLocked(fn)
}

func (c *container) changeLocked(fn func(*spec.Container)) *spec.Container {
	next := *c.view.Load()
	fn(&next)
	if g := c.given.Load(); g != nil {
		g = relabel(g, &next)
		next.Config.Labels = g.Labels
		c.given.Store(g)
	}
	c.view.Store(&next)
	c.tellLocked()
	return &next
}

// watch returns the view and a channel that is closed when it is outdated.
func (c *container) watch() (view *spec.Container, settled bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view.Load(), !c.settling, c.changed
}

func (c *container) tellLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// current returns the run there is now, or nil.
func (c *container) current() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

// ending returns that of the current run or, where there is none, of the next.
func (c *container) ending() *ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// quiet stops the timers of a container.
func (c *container) quiet() {
	c.mu.Lock()
	retry, doctor := c.retry, c.doctor
	c.retry, c.doctor = nil, nil
	c.mu.Unlock()
	if retry != nil {
		retry.Stop()
	}
	if doctor != nil {
		doctor.stop()
	}
}

// alive says whether there is a process in that state.
func alive(status spec.State) bool { return status == spec.Running || status == spec.Paused }

// busy says whether a container in that state runs or will run again by itself.
func busy(status spec.State) bool { return alive(status) || status == spec.Restarting }

// exitOf is how the container ended last.
func exitOf(c *spec.Container) spec.Exit {
	return spec.Exit{
		Code:      c.State.ExitCode,
		Unknown:   c.State.ExitUnknown,
		OOMKilled: c.State.OOMKilled,
		At:        c.State.FinishedAt,
		Error:     c.State.Error,
	}
}

// running fails with errs.Conflict unless the container runs and is not paused.
func running(c *spec.Container) error {
	switch c.State.Status {
	case spec.Running:
		return nil
	case spec.Paused:
		return errs.New(errs.Conflict, "container %s is paused: unpause it first", c.Name)
	default:
		return errs.New(errs.Conflict, "container %s is not running", c.Name)
	}
}
