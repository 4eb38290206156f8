package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// exec runs a ticket's command. A command that ends with another code than 0
// is an utilexec.ExitError, as the protocol's library wants it.
func (s *Server) exec(ctx context.Context, t ticket, client streams) error {
	code, err := s.run(ctx, t, client)
	if err == nil && code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
	}
	return err
}

// run runs a ticket's command and returns its exit code.
func (s *Server) run(ctx context.Context, t ticket, client streams) (int, error) {
	e, session, err := s.begin(ctx, t)
	if err != nil {
		return 0, err
	}
	defer s.Containers.ForgetExec(e.ID)
	defer session.Close() //nolint:errcheck // a terminal may have gone
	ctx, lost := context.WithCancel(ctx)
	defer lost()
	pumps := s.connect(ctx, session, client, lost)
	done, err := s.Containers.WaitExec(ctx, e.ID)
	if err != nil {
		return 0, err
	}
	drain(pumps, ctx.Done())
	if done.ExitUnknown {
		return 0, errs.New(errs.Internal, "the command has ended, nobody knows how")
	}
	return done.ExitCode, nil
}

func (s *Server) begin(ctx context.Context, t ticket) (spec.Exec, *container.ExecSession, error) {
	e, err := s.Containers.CreateExec(ctx, s.Ref(t.id), spec.ExecConfig{Command: t.command, TTY: t.tty, OpenStdin: t.stdin})
	if err != nil {
		return spec.Exec{}, nil, err
	}
	session, err := s.Containers.StartExec(ctx, e.ID)
	if err != nil {
		s.Containers.ForgetExec(e.ID)
	}
	return e, session, err
}

// connect joins the client's end and the process's. lost is called when the
// client takes no more output.
func (s *Server) connect(ctx context.Context, session *container.ExecSession, client streams, lost func()) []*pump {
	var pumps []*pump
	if client.stdin != nil && session.Stdin != nil {
		s.pumps.Go(func() {
			_, _ = io.Copy(session.Stdin, client.stdin)
			if session.CloseStdin != nil { // a terminal stays open
				_ = session.CloseStdin(ctx)
			}
		})
	}
	for _, out := range []struct {
		from io.Reader
		to   io.Writer
	}{{session.Stdout, client.stdout}, {session.Stderr, client.stderr}} {
		if out.from == nil {
			continue
		}
		if out.to == nil {
			out.to = io.Discard
		}
		pumps = append(pumps, s.copyOut(out.to, out.from, lost))
	}
	s.follow(ctx, client.resize, session.Resize)
	return pumps
}

// follow applies sizes of a terminal until ctx ends.
func (s *Server) follow(ctx context.Context, sizes <-chan remotecommand.TerminalSize, resize func(spec.Size) error) {
	if sizes == nil || resize == nil {
		return
	}
	s.pumps.Go(func() {
		for {
			select {
			case size, more := <-sizes:
				if !more {
					return
				}
				if err := resize(spec.Size{Rows: size.Height, Cols: size.Width}); err != nil {
					s.Log.DebugContext(ctx, "resize a terminal", "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
}

// mostOutput is how much of each stream ExecSync returns, as the CRI has it.
const mostOutput = 16 << 20

// longest is as many seconds as a command may take that is said to take longer.
const longest = int64(100 * 365 * 24 * 3600)

// killWait bounds how long a command may take to end that was killed.
const killWait = 10 * time.Second

// ExecSync runs a command to its end. One that takes too long is killed:
// errs.Timeout. What exceeds the CRI's bound of output is left out.
func (s *Server) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, errs.New(errs.Invalid, "exec in container %s: no command", r.GetContainerId())
	}
	c, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	e, session, err := s.begin(ctx, ticket{id: c.ID, command: r.GetCmd(), flags: flags{stdout: true, stderr: true}})
	if err != nil {
		return nil, err
	}
	defer s.Containers.ForgetExec(e.ID)
	defer session.Close() //nolint:errcheck // a terminal may have gone
	stdout, stderr := capped{room: mostOutput}, capped{room: mostOutput}
	pumps := s.connect(ctx, session, streams{stdout: &stdout, stderr: &stderr}, func() {})
	done, err := s.waitSync(ctx, e.ID, time.Duration(min(r.GetTimeout(), longest))*time.Second)
	if err != nil {
		return nil, err
	}
	drain(pumps, ctx.Done())
	return &cri.ExecSyncResponse{Stdout: stdout.take(), Stderr: stderr.take(), ExitCode: int32(done.ExitCode)}, nil //nolint:gosec // a byte
}

// waitSync waits for the end of an exec; one that takes longer, or whose client
// has gone, is killed. 0 is for ever.
func (s *Server) waitSync(ctx context.Context, id string, timeout time.Duration) (spec.Exec, error) {
	wait, cancel := ctx, func() {}
	if timeout > 0 {
		wait, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	done, err := s.Containers.WaitExec(wait, id)
	if err == nil || wait.Err() == nil {
		return done, err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
	defer cancel()
	killed := s.Containers.KillExec(last, id, syscall.SIGKILL)
	if _, err := s.Containers.WaitExec(last, id); err != nil {
		s.Log.WarnContext(ctx, "a command goes on that took too long", "exec", id, "error", errors.Join(killed, err))
	}
	if ctx.Err() != nil {
		return spec.Exec{}, fmt.Errorf("the client of a command has gone: %w", ctx.Err())
	}
	return spec.Exec{}, errs.New(errs.Timeout, "the command timed out: it was killed after %s", timeout)
}

// capped keeps the beginning of what is written to it.
type capped struct {
	mu   sync.Mutex
	data []byte
	room int
}

func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := p[:min(len(p), c.room)]
	c.data, c.room = append(c.data, kept...), c.room-len(kept)
	return len(p), nil
}

// take returns it; nothing is kept any more.
func (c *capped) take() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.room = 0
	return c.data
}
