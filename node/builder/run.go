package builder

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// maxSocketPath is what fits into a unix socket's address.
const maxSocketPath = 107

// Run starts buildkitd when somebody connects, and stops it when nobody has
// been connected for a while, until ctx is done. Then it stops buildkitd too,
// unless somebody builds.
func (b *Builder) Run(ctx context.Context) error {
	if b.running() == nil {
		b.tidy(ctx) // the last one may have been killed with its node
	}
	for ctx.Err() == nil {
		b.mu.Lock()
		p, door := b.process, b.door
		b.mu.Unlock()
		switch {
		case p == nil:
			b.awaitClient(ctx, door)
		case p.isOver():
			b.ended(ctx, p)
		default:
			b.watch(ctx, p)
		}
	}
	b.leave(context.WithoutCancel(ctx))
	return ctx.Err()
}

// leave stops buildkitd unless somebody builds. The door of its worker may be
// closed by now, so that it is asked nothing.
func (b *Builder) leave(ctx context.Context) {
	b.turn.Lock()
	defer b.turn.Unlock()
	p := b.running()
	if p == nil {
		return
	}
	clients, err := b.connections()
	if err == nil && clients == 0 {
		err = b.end(ctx, p)
	}
	if err != nil {
		b.Log.WarnContext(ctx, "buildkitd is left", "error", err)
	}
}

// listen opens a new socket under the socket's name. Who waits at an earlier
// one of ours is turned away.
func (b *Builder) listen(ctx context.Context) error {
	for _, path := range []string{b.hidden(), b.socket()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var config net.ListenConfig
	opened, err := config.Listen(ctx, "unix", b.hidden())
	if err != nil {
		return err
	}
	listener := opened.(*net.UnixListener) //nolint:forcetypeassert // what network unix gives
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	err = errors.Join(err, listener.Close(), os.Chown(b.hidden(), 0, b.Group), os.Chmod(b.hidden(), b.Mode), os.Rename(b.hidden(), b.socket()))
	if err != nil {
		if file != nil {
			_ = file.Close()
		}
		return err
	}
	b.mu.Lock()
	before := b.door
	b.door = file
	b.mu.Unlock()
	if before != nil {
		return before.Close()
	}
	return nil
}

// awaitClient waits until somebody connects, and starts buildkitd for them.
// Who cannot be served is turned away.
func (b *Builder) awaitClient(ctx context.Context, door *os.File) {
	done, cancel := context.WithCancel(ctx)
	defer cancel()
	connected := make(chan error, 1)
	_ = door.SetReadDeadline(time.Time{})
	b.work.Go(func() { connected <- readable(door) })
	select {
	case err := <-connected:
		if err != nil {
			return // the socket was replaced
		}
	case <-b.changed:
		cancel()
	case <-ctx.Done():
	}
	if done.Err() != nil {
		_ = door.SetReadDeadline(time.Unix(1, 0)) // ends the wait
		<-connected                               //nolint:errcheck // it says that the wait was ended
		return
	}
	err := b.ensure(ctx)
	if err == nil || ctx.Err() != nil {
		return
	}
	b.Log.ErrorContext(ctx, "somebody wants to build, and cannot", "error", err)
	b.turn.Lock()
	defer b.turn.Unlock()
	if b.running() == nil {
		if err := b.listen(ctx); err != nil {
			b.Log.ErrorContext(ctx, "the builder cannot be reached", "error", err)
		}
	}
}

// readable waits until there is something to read, or to accept; for a
// process, until it has ended.
func readable(file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		n, err := unix.Poll(poll, 0)
		return n > 0 && err == nil
	})
}

// ended puts away what is left of a process that nobody told to end.
func (b *Builder) ended(ctx context.Context, p *process) {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.mu.Lock()
	known := b.process == p
	b.mu.Unlock()
	if known {
		b.Log.WarnContext(ctx, "buildkitd has ended by itself", "pid", p.pid, "log", b.logPath())
		b.settle(ctx, p)
	}
}

// watch looks after a process for some time, and stops it if it is idle.
func (b *Builder) watch(ctx context.Context, p *process) {
	tick := time.NewTimer(min(max(b.Idle/8, 50*time.Millisecond), 10*time.Second))
	defer tick.Stop()
	select {
	case <-tick.C:
	case <-p.over:
		return
	case <-b.changed:
		return
	case <-ctx.Done():
		return
	}
	clients, err := b.connections()
	if err != nil {
		b.Log.ErrorContext(ctx, "nobody knows whether the builder is in use", "error", err)
		return
	}
	if clients > 0 {
		b.touch()
		return
	}
	b.remember(ctx)
	b.mu.Lock()
	idle := time.Since(b.used)
	b.mu.Unlock()
	if b.Idle < 0 || idle < b.Idle {
		return
	}
	if err := b.Stop(ctx, false); err != nil && !errors.Is(err, errs.Conflict) {
		b.Log.WarnContext(ctx, "the idle builder is not stopped", "error", err)
		return
	}
	b.Log.InfoContext(ctx, "buildkitd was stopped: nobody needed it", "pid", p.pid)
}
