package shim

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/container"
)

// unknownCode is what a process ended with of which nobody knows.
const unknownCode = 255

// process is the first process of a container, or that of an exec.
type process struct {
	task *task
	id   string // ours
	exec string // the shim's name of an exec; "" is the container
	done chan struct{}

	followed bool // set before others know the process

	mu     sync.Mutex
	number int // its pid
	exit   *container.Exit
	pidfd  int  // of a container's, to end it where its shim does not; -1
	held   bool // its end is not told yet: nobody has been told that it began
	pipes  *pipes
}

func newProcess(t *task, id, exec string, pid int) *process {
	return &process{task: t, id: id, exec: exec, number: pid, pidfd: -1, done: make(chan struct{})}
}

func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.number
}

func (p *process) setPid(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number = pid
	if p.exec != "" || pid <= 1 {
		return
	}
	p.closePidfd()
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		p.pidfd = fd
	}
}

func (p *process) closePidfd() {
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// end kills a container's process where nobody else can.
func (p *process) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 {
		_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
	}
}

func (p *process) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit != nil
}

func (p *process) letGo() {
	p.mu.Lock()
	pipes := p.pipes
	p.closePidfd()
	p.mu.Unlock()
	if pipes != nil {
		pipes.close()
	}
}

// kill sends a signal.
func (p *process) kill(ctx context.Context, sig syscall.Signal, all bool) error {
	if p.over() {
		return errs.New(errs.NotFound, "process %s has ended", p.id)
	}
	return p.call(ctx, "Kill", &taskapi.KillRequest{ID: p.task.Name, ExecID: p.exec, Signal: uint32(sig), All: all})
}

// delete has the shim forget the process, which has ended.
func (p *process) delete(ctx context.Context) error {
	return p.call(ctx, "Delete", &taskapi.DeleteRequest{ID: p.task.Name, ExecID: p.exec})
}

// follow waits for the end, as the shim tells it.
func (p *process) follow() {
	s := p.task.shim
	p.followed = true
	p.task.driver.work.Go(func() {
		for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
			var answer taskapi.WaitResponse
			err := s.call(s.life, 0, "Wait", &taskapi.WaitRequest{ID: p.task.Name, ExecID: p.exec}, &answer)
			switch {
			case err == nil:
				p.ended(int(answer.GetExitStatus()), true, answer.GetExitedAt().AsTime())
				return
			case s.dead() || p.over() || errors.Is(err, ttrpc.ErrClosed):
				return // whoever knows of that tells it
			case errors.Is(err, errs.NotFound):
				p.ended(unknownCode, false, time.Now())
				return
			}
			p.task.driver.Log.WarnContext(s.life, "cannot wait for a process", "id", p.id, "error", err)
			again := time.NewTimer(wait)
			select {
			case <-again.C:
			case <-s.life.Done():
				again.Stop()
				return
			case <-p.done:
				again.Stop()
				return
			}
		}
	})
}

// ended notes the end, once: after what the process wrote, and before anybody
// is told.
func (p *process) ended(code int, known bool, at time.Time) {
	if at.IsZero() || at.Unix() == 0 {
		at = time.Now()
	}
	p.mu.Lock()
	if p.exit != nil {
		p.mu.Unlock()
		<-p.done
		return
	}
	x := container.Exit{ID: p.id, Pid: p.number, Code: code, Known: known, At: at}
	p.exit = &x
	pipes := p.pipes
	p.mu.Unlock()
	if pipes != nil {
		pipes.drain()
	}
	d := p.task.driver
	err := p.task.note(func(r *record) {
		if p.exec == "" {
			r.Exit = &x
			return
		}
		if e, ok := r.Execs[p.id]; ok {
			e.Exit = &x
			r.Execs[p.id] = e
		}
	})
	if err != nil {
		d.Log.Error("cannot note the end of a process", "id", p.id, "error", err)
	}
	p.mu.Lock()
	held := p.held
	close(p.done)
	p.mu.Unlock()
	if !held {
		d.tell(x)
	}
}

// release tells the end that came before the beginning was known.
func (p *process) release() {
	p.mu.Lock()
	p.held = false
	over := false
	select {
	case <-p.done:
		over = true
	default:
	}
	x := p.exit
	p.mu.Unlock()
	if over {
		p.task.driver.tell(*x)
	}
}
