package seccomp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's words, as in linux/seccomp.h.
const (
	ioctlReceive  = 0xc0502100
	ioctlSend     = 0xc0182101
	ioctlValid    = 0x40082102
	ioctlSetFlags = 0x40082104

	flagContinue = 1 // of an answer: the call is made
	flagSyncWake = 1 // of a descriptor: both sides share a processor, which is faster
	notFromHere  = 0 // the pid of a process that our PID namespace does not have
)

// notification is a call that waits for an answer.
type notification struct {
	id     uint64
	pid    uint32 // a thread's
	flags  uint32
	number int32
	arch   uint32
	ip     uint64
	args   [6]uint64
}

// answer to one: flags, or an error.
type answer struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// listener answers the calls of one process and all that came of it: those of
// the container, or of a command in it.
type listener struct {
	of   *watched
	name string // in the keeper
	file *os.File
	raw  syscall.RawConn
	// begun: the process runs what is the container's. Until then it is the
	// OCI runtime, whose calls are not the container's.
	begun bool
	pace  pace
}

// pace bounds how much of the node's time a container gets that makes forbidden
// calls without end: its own cgroup does not.
type pace struct {
	second time.Time
	calls  int
}

// Refusals beyond so many in a second are slow.
const (
	refusalsASecond = 1000
	slowRefusal     = time.Millisecond
)

// wait holds up the refusal that is one too many.
func (p *pace) wait(ctx context.Context) {
	now := time.Now()
	if now.Sub(p.second) >= time.Second {
		p.second, p.calls = now, 0
	}
	if p.calls++; p.calls <= refusalsASecond {
		return
	}
	timer := time.NewTimer(slowRefusal)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// newListener listens to a copy of file.
func newListener(of *watched, file *os.File, name string) (*listener, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	own := -1
	if e := raw.Control(func(fd uintptr) { own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); e != nil || err != nil {
		return nil, errors.Join(e, err)
	}
	if err := unix.SetNonblock(own, true); err != nil { // so that no thread waits in it
		unix.Close(own)
		return nil, err
	}
	flags := uint64(flagSyncWake)
	_ = ioctl(uintptr(own), ioctlSetFlags, unsafe.Pointer(&flags)) // where the kernel knows of it
	l := &listener{of: of, name: name, file: os.NewFile(uintptr(own), name)}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

func (l *listener) close() { l.file.Close() }

func ioctl(fd, request uintptr, argument unsafe.Pointer) error {
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(argument)); no != 0 {
		return no
	}
	return nil
}

// serve answers until nobody is left who could ask, or Run ends. The caller
// holds Watcher.mu, and before Run nothing is answered.
func (w *Watcher) serve(l *listener) {
	ctx := w.running
	if ctx == nil {
		w.waiting = append(w.waiting, l)
		return
	}
	w.served.Go(func() {
		defer context.AfterFunc(ctx, func() { _ = l.file.SetReadDeadline(time.Unix(1, 0)) })()
		err := w.answerAll(ctx, l)
		if ctx.Err() != nil {
			return // the next node goes on
		}
		if err != nil && !errors.Is(err, os.ErrClosed) {
			w.config.Log.ErrorContext(ctx, "system calls are not answered any more", "container", l.of.Container, "err", err)
		}
		w.ended(ctx, l)
	})
}

// ended forgets a listener that nobody asks through.
func (w *Watcher) ended(ctx context.Context, l *listener) {
	l.close()
	l.of.mu.Lock()
	delete(l.of.live, l)
	l.of.mu.Unlock()
	if w.config.Keeper != nil {
		if err := w.config.Keeper.Drop(ctx, l.name); err != nil {
			w.config.Log.WarnContext(ctx, "descriptor that nobody needs", "name", l.name, "err", err)
		}
	}
	w.keep(ctx, l.of)
	w.keepProfile(ctx, l.of)
}

// answerAll returns nil when nobody is left who could ask.
func (w *Watcher) answerAll(ctx context.Context, l *listener) error {
	for {
		var asked notification
		var over bool
		var err error
		waited := l.raw.Read(func(fd uintptr) bool {
			asked, over, err = next(fd)
			return over || err != nil || asked.id != 0
		})
		switch {
		case waited != nil:
			return waited
		case err != nil:
			return err
		case over:
			return nil
		}
		w.answer(ctx, l, asked)
	}
}

// next is a call that waits; none without an id. It does not wait: the kernel
// says first that there is one.
func next(fd uintptr) (asked notification, over bool, err error) {
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(ready, 0); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return asked, false, err
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			return asked, ready[0].Revents != 0, nil
		}
		switch err := ioctl(fd, ioctlReceive, unsafe.Pointer(&asked)); {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // who asked has gone
			asked = notification{}
		default:
			return asked, false, err
		}
	}
}

func (w *Watcher) answer(ctx context.Context, l *listener, asked notification) {
	name := w.table.name(asked.arch, asked.number)
	no, may := w.judge(ctx, l, name, asked)
	if !may {
		l.pace.wait(ctx)
	}
	// Who asked may have gone meanwhile, and its id stand for somebody else.
	// The kernel looks again at the answer; until then nothing was done for it.
	err := l.raw.Control(func(fd uintptr) {
		if ioctl(fd, ioctlValid, unsafe.Pointer(&asked.id)) != nil {
			return
		}
		say := answer{id: asked.id, err: -int32(no)}
		if may {
			say.err, say.flags = 0, flagContinue
		}
		if err := ioctl(fd, ioctlSend, unsafe.Pointer(&say)); err != nil && !errors.Is(err, unix.ENOENT) {
			w.config.Log.WarnContext(ctx, "answer to a system call", "container", l.of.Container, "syscall", name, "err", err)
		}
	})
	if err != nil && ctx.Err() == nil {
		w.config.Log.DebugContext(ctx, "system call without an answer", "container", l.of.Container, "err", err)
	}
}

// judge says whether a call may be made, or with which error it fails, and
// notes it.
func (w *Watcher) judge(ctx context.Context, l *listener, name string, asked notification) (unix.Errno, bool) {
	own := l.isRuntime(int(asked.pid))
	if l.of.Mode == record {
		no, may := verdict(l.of.Profile, name, asked.args)
		switch {
		case may:
			w.used(ctx, l.of, name) // those of the runtime too: it needs them again
		case !own:
			w.forbidden(ctx, l.of, name)
		}
		return no, may
	}
	no := refusal(l.of.Profile, name, asked.args)
	if own {
		return no, false
	}
	w.forbidden(ctx, l.of, name)
	return no, l.of.Mode == audit
}

// isRuntime says whether a process is still the OCI runtime, which runs from
// where the container does not see it.
func (l *listener) isRuntime(pid int) bool {
	if !l.begun {
		l.begun = pid == notFromHere || runsOwnProgram(pid)
	}
	return !l.begun
}

// runsOwnProgram says whether what a process runs is on one of the mounts that
// it sees.
func runsOwnProgram(pid int) bool {
	var program unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/exe", pid), 0, unix.STATX_MNT_ID, &program); err != nil || program.Mask&unix.STATX_MNT_ID == 0 {
		return !errors.Is(err, unix.ENOENT) // one that has gone tells nothing
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false
	}
	id := strconv.FormatUint(program.Mnt_id, 10) + " "
	return bytes.HasPrefix(mounts, []byte(id)) || bytes.Contains(mounts, []byte("\n"+id))
}
