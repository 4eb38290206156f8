package container

import (
	"os"
	"sync"
	"time"

	"berth/spec"
)

// execution is a further process in a container. It is forgotten with the container.
type execution struct {
	id        string
	container *container
	done      chan struct{} // closed when it has ended, or could not be started
	quiet     bool          // a health check: no events
	request   *ExecRequest  // of the client that added it to a task; nil for the node's own

	mu      sync.Mutex
	told    bool  // the start is, so that the end may be
	early   *Exit // an end that came before
	process *Process
	pid     int // stays when it has ended
	state   spec.Exec
	started bool
	failed  bool // to start
	ended   time.Time
	exited  bool // its owner has told its end, and keeps its descriptors
	closed  bool // nobody reads its output any more
	console *os.File
	// unwanted: nobody asks for it any more.
	unwanted bool
}

// notStarted stands for the end of what never began.
func notStarted(err error) Exit { return Exit{Code: startCode(err), Known: true, At: time.Now()} }

// name is what the exec is called in events.
func (e *execution) name() string {
	if e.request != nil {
		return e.request.ID
	}
	return e.id
}

// heldBack keeps an end that came before the start was told.
func (e *execution) heldBack(x Exit) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.told {
		e.early = &x
	}
	return !e.told
}

func (e *execution) lastPid() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pid
}

func (e *execution) get() spec.Exec {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// claim makes the caller the one who starts it.
func (e *execution) claim() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := !e.started
	e.started = true
	return first
}

// began notes the process, unless its end was told before.
func (e *execution) began(p *Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.console, e.process, e.pid = p.Console, p, p.Pid
	if e.ended.IsZero() {
		e.state.Running, e.state.Pid = true, p.Pid
	}
}

// end notes an end and wakes who waits for it.
func (e *execution) end(x Exit) {
	if e.note(x) {
		close(e.done)
	}
}

// note notes an end. With true the caller closes done, once it has told of it:
// who has waited for an end finds its event there.
func (e *execution) note(x Exit) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.ended.IsZero() {
		return false
	}
	if !x.Known {
		x.Code = unknownCode
	}
	e.state.Running, e.state.Pid, e.state.ExitCode, e.state.ExitUnknown = false, 0, x.Code, !x.Known
	e.ended = x.At
	return true
}

// fail notes that a client's exec could not be started.
func (e *execution) fail(err error) {
	e.mu.Lock()
	e.failed = true
	e.mu.Unlock()
	e.end(notStarted(err))
}

func (e *execution) outdated() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.request != nil {
		return e.container.isGone() // its client deletes it
	}
	return !e.ended.IsZero() && time.Since(e.ended) > execAge || !e.started && e.container.isGone()
}
