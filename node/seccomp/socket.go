package seccomp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// listen makes the socket where runtimes send descriptors. What another node
// left there is dead: two nodes do not share a state folder.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := ignoreMissing(os.Remove(path)); err != nil {
		return nil, err
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// accept takes descriptors until the socket is closed.
func (w *Watcher) accept(ctx context.Context) {
	for {
		conn, err := w.socket.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				w.config.Log.ErrorContext(ctx, "seccomp socket", "err", err)
			}
			return
		}
		w.served.Go(func() {
			if err := w.receive(ctx, conn); err != nil && ctx.Err() == nil {
				w.config.Log.ErrorContext(ctx, "seccomp descriptor of a container", "err", err)
			}
		})
	}
}

// A runtime has this long to say what it has connected for, in so many bytes.
const (
	stateTimeout = 10 * time.Second
	stateLimit   = 1 << 20
	mostFDs      = 8
)

// receive takes one descriptor, and answers through it from then on.
func (w *Watcher) receive(ctx context.Context, conn *net.UnixConn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(stateTimeout)); err != nil {
		return err
	}
	state, fd, err := readState(conn)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "seccomp")
	defer file.Close()
	c := w.find(state.Metadata)
	if c == nil {
		return errs.New(errs.NotFound, "container %q is not watched", state.Metadata)
	}
	return w.take(ctx, c, file)
}

// take begins to answer what is asked through file, of which it makes a copy.
func (w *Watcher) take(ctx context.Context, c *watched, file *os.File) error {
	c.mu.Lock()
	c.holds++
	name := fmt.Sprintf("%s%s/%d", heldPrefix, c.Container, c.holds)
	c.mu.Unlock()
	l, err := newListener(c, file, name)
	if err != nil {
		return err
	}
	if w.config.Keeper != nil {
		if err := w.config.Keeper.Hold(ctx, name, file); err != nil {
			w.config.Log.WarnContext(ctx, "system calls fail if the node ends", "container", c.Container, "err", err)
		}
	}
	c.mu.Lock()
	gone := c.gone
	c.live[l] = true
	c.mu.Unlock()
	if gone {
		l.close()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serve(l)
	return nil
}

// readState reads the message of a runtime: OCI's state of a container's
// process, with its descriptors.
func readState(conn *net.UnixConn) (state specs.ContainerProcessState, fd int, err error) {
	var text bytes.Buffer
	var fds []int
	fail := func(err error) (specs.ContainerProcessState, int, error) {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return specs.ContainerProcessState{}, -1, err
	}
	buffer, control := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(4*mostFDs))
	for {
		n, controls, _, _, err := conn.ReadMsgUnix(buffer, control)
		fds = append(fds, descriptors(control[:controls])...)
		if err != nil {
			return fail(err)
		}
		text.Write(buffer[:n])
		if json.Unmarshal(text.Bytes(), &state) == nil {
			break
		}
		if n == 0 || text.Len() > stateLimit || len(fds) > mostFDs {
			return fail(errs.New(errs.Invalid, "seccomp: %d bytes that are no state of a container", text.Len()))
		}
	}
	at := slices.Index(state.Fds, specs.SeccompFdName)
	if at < 0 || at >= len(fds) {
		return fail(errs.New(errs.Invalid, "seccomp: %d descriptors named %q", len(fds), state.Fds))
	}
	fd = fds[at]
	fds = slices.Delete(fds, at, at+1)
	for _, other := range fds {
		unix.Close(other)
	}
	return state, fd, nil
}

// descriptors that came with a message.
func descriptors(control []byte) []int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	var all []int
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			all = append(all, fds...)
		}
	}
	for _, fd := range all {
		unix.CloseOnExec(fd)
	}
	return all
}
