package rest

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

type execQuery struct {
	Named
	Stdin bool `query:"stdin" doc:"the client sends input"`
}

// startExec runs an exec and carries its streams. What goes wrong with the
// start is told on the WebSocket.
func (s *Server) startExec(w http.ResponseWriter, r *http.Request, in *execQuery) {
	if _, err := s.Containers.GetExec(r.Context(), in.Ref); err != nil {
		s.fail(w, r, err)
		return
	}
	k, ok := s.upgrade(w, r)
	if !ok {
		return
	}
	near := &execPeer{started: make(chan struct{})}
	s.converse(r.Context(), k, near, func(ctx context.Context) (spec.Exit, error) {
		session, err := s.Containers.StartExec(ctx, in.Ref)
		if err != nil {
			return spec.Exit{}, err
		}
		defer func() { _ = release(session) }()
		near.session = session
		close(near.started)
		if !in.Stdin {
			_ = near.closeStdin(ctx) // nobody will write
		}
		return s.execOutput(ctx, k, session, in.Ref)
	})
}

// execOutput copies what the process writes until it has ended and its output
// has too. A child that it left behind may hold the output open for ever: once
// the process is gone, silence is taken for the end.
func (s *Server) execOutput(ctx context.Context, k *socket, session *container.ExecSession, id string) (spec.Exit, error) {
	var copying, watching sync.WaitGroup
	var moved atomic.Int64
	pipe := func(channel spec.Channel, from io.Reader) {
		if from != nil {
			copying.Go(func() { copyOutput(k.box, channel, from, &moved) })
		}
	}
	pipe(spec.ChannelStdout, session.Stdout)
	pipe(spec.ChannelStderr, session.Stderr)
	read := make(chan struct{})
	watching.Go(func() { copying.Wait(); close(read) })
	defer watching.Wait()
	defer func() { _ = release(session) }() // ends the reading

	exec, err := s.Containers.WaitExec(ctx, id)
	if err != nil {
		return spec.Exit{}, err
	}
	awaitSilence(ctx, k.box, read, &moved)
	return spec.Exit{Code: exec.ExitCode, Unknown: exec.ExitUnknown, At: time.Now()}, nil
}

// silence is how long a process that is gone must have been heard nothing of.
const silence = 500 * time.Millisecond

// awaitSilence returns when all is read, or nothing has come for a while that
// could have been taken.
func awaitSilence(ctx context.Context, box *outbox, read <-chan struct{}, moved *atomic.Int64) {
	tick := time.NewTicker(silence)
	defer tick.Stop()
	for before := int64(-1); ; {
		select {
		case <-read:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := moved.Load()
		if now == before && box.idle() {
			return
		}
		before = now
	}
}

func copyOutput(box *outbox, channel spec.Channel, from io.Reader, moved *atomic.Int64) {
	buf := make([]byte, frameSize-1)
	for {
		n, err := from.Read(buf)
		moved.Add(int64(n))
		if n > 0 && box.put(channel, buf[:n]) != nil {
			return
		}
		if err != nil {
			return // the end; a terminal says it with an error
		}
	}
}

// execPeer is the input of an exec, which waits for its start.
type execPeer struct {
	started chan struct{} // closed when session is set
	session *container.ExecSession
	closed  atomic.Bool
}

func (p *execPeer) ready(ctx context.Context) error {
	select {
	case <-p.started:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *execPeer) write(ctx context.Context, data []byte) error {
	if err := p.ready(ctx); err != nil {
		return err
	}
	if p.session.Stdin == nil || p.closed.Load() {
		return nil
	}
	_, _ = p.session.Stdin.Write(data) // a process that reads no more is its own business
	return nil
}

func (p *execPeer) closeStdin(ctx context.Context) error {
	if err := p.ready(ctx); err != nil {
		return err
	}
	if p.session.Stdin == nil || p.session.CloseStdin == nil || p.closed.Swap(true) {
		return nil
	}
	return ignore(p.session.CloseStdin(ctx), errs.Conflict, errs.NotFound)
}

func (p *execPeer) resize(ctx context.Context, size spec.Size) error {
	if err := p.ready(ctx); err != nil {
		return err
	}
	if p.session.Resize != nil {
		_ = p.session.Resize(size) // it has ended, or has no terminal
	}
	return nil
}
