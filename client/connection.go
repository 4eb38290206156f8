package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/coder/websocket"

	"berth/base/errs"
	"berth/spec"
)

// once is outlive for what cannot be taken up again.
func once(ctx context.Context, try func(alive func()) error) error {
	return plain(ctx, try(func() {}))
}

// connection attaches once, and returns when the process has ended, the user
// leaves, or the connection breaks.
func (a *attachment) connection(ctx context.Context, alive func()) (spec.Exit, error) {
	conn, err := a.dial(ctx)
	if a.position != "" && errors.Is(err, errs.NotFound) {
		return a.client.ContainerWait(ctx, a.ref, NotRunning) // removed while we were away
	}
	if err != nil {
		return spec.Exit{}, err
	}
	alive()
	ctx, cancel := context.WithCancel(ctx)
	l := &link{attachment: a, conn: conn, alive: alive}
	defer func() {
		cancel()
		_ = conn.CloseNow()
		l.pump.Wait()
	}()
	return l.read(ctx)
}

func (a *attachment) dial(ctx context.Context) (*websocket.Conn, error) {
	path, q := a.path()
	address := "ws://berth" + prefix + path + "?" + q.values().Encode()
	conn, resp, err := websocket.Dial(ctx, address, &websocket.DialOptions{HTTPClient: a.client.http}) //nolint:bodyclose // problemOf closes it; an upgraded connection has none
	if err == nil {
		conn.SetReadLimit(1 << 20)
		return conn, nil
	}
	if resp != nil && resp.StatusCode >= http.StatusBadRequest {
		return nil, problemOf(resp)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return nil, a.client.unreachable(ctx, err)
}

// link is one connection of an attachment.
type link struct {
	*attachment
	conn     *websocket.Conn
	alive    func()
	pump     sync.WaitGroup
	detached atomic.Bool
}

// read takes messages until the last one.
func (l *link) read(ctx context.Context) (spec.Exit, error) {
	if l.exec {
		if err := l.begin(ctx); err != nil {
			return spec.Exit{}, err
		}
	}
	if l.ready {
		l.pump.Go(func() { l.sendInput(ctx) })
	}
	buf := make([]byte, 80<<10)
	for {
		channel, data, err := l.message(ctx, &buf)
		if l.detached.Load() {
			return spec.Exit{}, &callerError{ErrDetached}
		}
		if err != nil {
			return spec.Exit{}, l.client.unreachable(ctx, err)
		}
		l.alive()
		switch channel {
		case spec.ChannelStdout:
			err = l.output(l.opts.Stdout, data)
		case spec.ChannelStderr:
			err = l.output(l.opts.Stderr, data)
		case spec.ChannelPlace:
			err = l.place(ctx, data)
		case spec.ChannelEnd:
			_ = l.conn.Close(websocket.StatusNormalClosure, "")
			return endOf(data)
		}
		if err != nil {
			return spec.Exit{}, err
		}
	}
}

// message reads one message into buf, which grows as needed.
func (l *link) message(ctx context.Context, buf *[]byte) (spec.Channel, []byte, error) {
	_, r, err := l.conn.Reader(ctx)
	if err != nil {
		return 0, nil, err
	}
	n := 0
	for {
		if n == len(*buf) {
			*buf = append(*buf, make([]byte, len(*buf))...)
		}
		m, err := r.Read((*buf)[n:])
		n += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, nil, err
		}
	}
	if n == 0 {
		return 0, nil, errs.New(errs.Internal, "the node sent an empty message")
	}
	return spec.Channel((*buf)[0]), (*buf)[1:n], nil
}

func (l *link) output(w io.Writer, data []byte) error {
	if w != nil {
		if _, err := w.Write(data); err != nil {
			return &callerError{err}
		}
	}
	l.received += int64(len(data))
	return nil
}

// place remembers where to go on from, and lets the caller go on the first time.
func (l *link) place(ctx context.Context, data []byte) error {
	var p spec.StreamPlace
	if err := json.Unmarshal(data, &p); err != nil {
		return errs.New(errs.Internal, "the node sent no position: %w", err)
	}
	l.ref, l.position, l.received = p.Container, p.Position, p.Skipped
	if l.ready {
		return nil
	}
	if err := l.begin(ctx); err != nil {
		return err
	}
	l.pump.Go(func() { l.sendInput(ctx) })
	return nil
}

// begin is done once for an attachment, when its first connection stands.
func (l *link) begin(ctx context.Context) error {
	if l.opts.Ready != nil {
		if err := l.opts.Ready(ctx); err != nil {
			return &callerError{err}
		}
	}
	l.ready = true
	if l.opts.Stdin != nil {
		l.reading.Go(func() { readInput(l.opts.Stdin, l.keys, l.over, l.input) })
	}
	return nil
}

// sendInput sends what the user types and the sizes of the terminal, until
// the connection ends. What could not be sent waits for the next connection.
func (l *link) sendInput(ctx context.Context) {
	resize := l.opts.Resize
	if l.ended && l.sendChunk(ctx, chunk{end: true}) != nil {
		return
	}
	for {
		if l.unsent != nil {
			if l.sendChunk(ctx, *l.unsent) != nil {
				return
			}
			l.unsent = nil
		}
		select {
		case <-ctx.Done():
			return
		case size, ok := <-resize:
			if !ok {
				resize = nil
			} else if l.sendJSON(ctx, spec.ChannelResize, size) != nil {
				return
			}
		case c := <-l.input:
			l.unsent = &c
		}
	}
}

func (l *link) sendChunk(ctx context.Context, c chunk) error {
	switch {
	case c.detach:
		l.detached.Store(true)
		return l.conn.Close(websocket.StatusNormalClosure, "detached")
	case c.end:
		l.ended = true
		return l.conn.Write(ctx, websocket.MessageBinary, []byte{byte(spec.ChannelClose), byte(spec.ChannelStdin)})
	}
	return l.conn.Write(ctx, websocket.MessageBinary, append([]byte{byte(spec.ChannelStdin)}, c.data...))
}

func (l *link) sendJSON(ctx context.Context, channel spec.Channel, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return l.conn.Write(ctx, websocket.MessageBinary, append([]byte{byte(channel)}, data...))
}

func endOf(data []byte) (spec.Exit, error) {
	var end spec.StreamEnd
	if err := json.Unmarshal(data, &end); err != nil {
		return spec.Exit{}, errs.New(errs.Internal, "the node did not say how the stream ended: %w", err)
	}
	switch {
	case end.Problem != nil:
		return spec.Exit{}, asError(*end.Problem)
	case end.Exit != nil:
		return *end.Exit, nil
	}
	return spec.Exit{}, errs.New(errs.Internal, "the node did not say how the stream ended")
}
