package rest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/logfile"
	"berth/spec"
)

// oldest is the position of the oldest kept output, for clients that come back.
const oldest = "oldest"

type attachQuery struct {
	Named
	Stdin bool   `query:"stdin" doc:"the client sends input"`
	Logs  bool   `query:"logs" doc:"from the oldest kept output; else from now"`
	From  string `query:"from" maxLength:"256" doc:"a position that an earlier attach told"`
	Skip  int64  `query:"skip" minimum:"0" doc:"bytes of output after it that the client has"`
}

// streams is the routes that last as long as a process.
func (r *routes) streams() {
	s := r.server
	stream(r, gives(r.operation("GET /containers/{ref}/logs", "ContainerLogs", "Read a container's output"), "text/plain",
		"CRI log records, one a line: time, stdout or stderr, F or P (the line goes on in the next record), text", &huma.Schema{Type: "string"}),
		s.logs)
	stream(r, gives(r.operation("GET /stats", "ContainerStats", "Tell what containers use"), "application/json",
		"once, or with stream each second", schemaOf[[]spec.Stats](r.api)),
		func(w http.ResponseWriter, req *http.Request, in *statsQuery) {
			if in.Stream {
				s.statsStream(w, req, in.Refs)
				return
			}
			stats, err := some(s.Containers.Stats(req.Context(), in.Refs))
			if err != nil {
				s.fail(w, req, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = r.api.Marshal(w, "application/json", stats)
		})
	stream(r, r.socketOperation("GET /containers/{ref}/attach", "Attach", "Connect to the streams of a container"), s.attach)
	stream(r, r.socketOperation("GET /execs/{ref}/attach", "ExecStart", "Start an exec, connected to its streams"), s.startExec)
}

func (r *routes) socketOperation(route, id, summary string) huma.Operation {
	op := r.operation(route, id, summary)
	op.Description = "A WebSocket of binary messages, whose first byte is a channel: 0 stdin, 1 stdout, 2 stderr (bytes as they are), " +
		"3 the end ({\"exit\": …} or {\"problem\": …}), 4 the terminal's size ({\"rows\": …, \"cols\": …}), " +
		"5 where in the log the output that follows begins ({\"container\": …, \"position\": …}), " +
		"255 the channel named by the next byte is closed. Channels 0, 4 and 255 are the client's."
	op.Responses["101"] = &huma.Response{
		Description: "The WebSocket; its last message, on channel 3:",
		Content:     map[string]*huma.MediaType{"application/json": {Schema: schemaOf[spec.StreamEnd](r.api)}},
	}
	op.DefaultStatus = http.StatusSwitchingProtocols
	return op
}

// attach gives the container's log as it grows, and takes input.
func (s *Server) attach(w http.ResponseWriter, r *http.Request, in *attachQuery) {
	c, err := s.Containers.Get(r.Context(), in.Ref)
	var place spec.StreamPlace
	if err == nil {
		place.Container, place.Skipped = c.ID, in.Skip
		place.Position, err = s.place(r.Context(), c.ID, in)
	}
	var ended <-chan struct{}
	if err == nil && in.From == "" { // who comes back wants no run that is yet to come
		ended, err = s.Containers.NextEnd(r.Context(), c.ID)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	k, ok := s.upgrade(w, r)
	if !ok {
		return
	}
	near := &containerPeer{set: s.Containers, container: c, open: in.Stdin && c.Config.OpenStdin}
	told := s.converse(r.Context(), k, near, func(ctx context.Context) (spec.Exit, error) {
		if err := k.value(spec.ChannelPlace, place); err != nil {
			return spec.Exit{}, err
		}
		if err := s.follow(ctx, k, place, ended); err != nil {
			return spec.Exit{}, err
		}
		return s.lastExit(ctx, c)
	})
	if !told {
		near.release(r.Context())
	}
}

// lastExit is how the run ended that was followed. A container that is started
// again by its policy is not waited for.
func (s *Server) lastExit(ctx context.Context, c spec.Container) (spec.Exit, error) {
	if policy := c.Config.Restart.Name; policy != "" && policy != "no" {
		now, err := s.Containers.Get(ctx, c.ID)
		if st := now.State; err == nil && !st.FinishedAt.IsZero() {
			return spec.Exit{Code: st.ExitCode, Unknown: st.ExitUnknown, OOMKilled: st.OOMKilled, At: st.FinishedAt, Error: st.Error}, nil
		}
	}
	return s.Containers.Wait(ctx, c.ID, container.NotRunning)
}

// place is where the client's output begins, but for what it skips.
func (s *Server) place(ctx context.Context, id string, in *attachQuery) (string, error) {
	switch {
	case in.From != "":
		return in.From, nil
	case in.Logs:
		return oldest, nil
	}
	now, err := s.Containers.LogPosition(ctx, id)
	if err == nil && now == "" {
		now = oldest // nothing was ever written
	}
	return string(now), err
}

// follow sends the log from place until ended, or where that is nil until the
// run that is there has ended.
func (s *Server) follow(ctx context.Context, k *socket, place spec.StreamPlace, ended <-chan struct{}) error {
	q := logfile.Query{From: logfile.Position(place.Position), Skip: place.Skipped, Tail: -1, Follow: true, Ended: ended}
	if place.Position == oldest {
		q.From = ""
	}
	return s.Containers.Logs(ctx, place.Container, q, func(l logfile.Line) error {
		end := newline
		if l.Partial {
			end = nil
		}
		return k.box.put(spec.Channel(l.Stream), l.Text, end)
	})
}

// converse runs the three sides of a WebSocket: what the process writes, what
// the client sends, and the sending. It returns when the output has ended,
// which is true, or the client is gone, which is false.
func (s *Server) converse(ctx context.Context, k *socket, near peer, output func(context.Context) (spec.Exit, error)) bool {
	ctx, cancel := context.WithCancel(ctx)
	var sides sync.WaitGroup
	defer sides.Wait()
	defer func() { _ = k.conn.CloseNow() }()
	defer cancel()
	sides.Go(func() {
		defer cancel()
		_ = k.receive(ctx, near) // the client is gone, or was told what it did wrong
	})
	sent := make(chan error, 1)
	sides.Go(func() { sent <- k.send(ctx) })

	exit, err := output(ctx)
	if ctx.Err() != nil {
		return false // gone, or the node stops: clients come back for the rest
	}
	end := spec.StreamEnd{Exit: &exit}
	if err != nil {
		end = spec.StreamEnd{Problem: &s.problem(ctx, err).Problem}
	}
	_ = k.value(spec.ChannelEnd, end)
	k.box.close()
	if <-sent == nil {
		_ = k.conn.Close(websocket.StatusNormalClosure, "")
	}
	return true
}

// containerPeer is the input of a container. Its stdin is opened with the
// first byte, since attach comes before start.
type containerPeer struct {
	set       Terminal
	container spec.Container
	open      bool // there is input, and a stdin for it

	mu    sync.Mutex
	stdin io.WriteCloser
}

// write drops what nobody reads: a container without stdin, or one that has
// ended.
func (p *containerPeer) write(ctx context.Context, data []byte) error {
	if !p.open {
		return nil
	}
	in, err := p.writer(ctx)
	if err != nil {
		return ignore(err, errs.Conflict)
	}
	if _, err := in.Write(data); err == nil {
		return nil
	}
	p.forget() // it ended; it may have been started again
	if in, err = p.writer(ctx); err == nil {
		_, _ = in.Write(data)
	}
	return nil
}

func (p *containerPeer) writer(ctx context.Context) (io.WriteCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stdin != nil {
		return p.stdin, nil
	}
	in, err := p.set.Stdin(ctx, p.container.ID)
	if err == nil {
		p.stdin = in
	}
	return in, err
}

func (p *containerPeer) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stdin = nil
}

func (p *containerPeer) closeStdin(ctx context.Context) error {
	if !p.open {
		return nil
	}
	in, err := p.writer(ctx)
	p.open = false
	if err == nil {
		_ = in.Close() // the room knows whether that ends the process's stdin
	}
	return ignore(err, errs.Conflict)
}

// release is closeStdin for a client that is gone without it. The run may have
// ended meanwhile; the next one is not waited for.
func (p *containerPeer) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	p.forget() // its context has ended
	_ = p.closeStdin(ctx)
}

func (p *containerPeer) resize(ctx context.Context, size spec.Size) error {
	if !p.container.Config.TTY {
		return nil
	}
	return ignore(p.set.Resize(ctx, p.container.ID, size), errs.Conflict, errs.NotFound)
}

// ignore makes nil of an error of one of the kinds.
func ignore(err error, kinds ...errs.Kind) error {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return nil
		}
	}
	return err
}
