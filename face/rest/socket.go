package rest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/coder/websocket"

	"berth/base/errs"
	"berth/spec"
)

// socket is a WebSocket of the channel protocol.
type socket struct {
	conn *websocket.Conn
	box  *outbox
}

// upgrade makes a WebSocket of the request, or answers that it is none.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) (*socket, bool) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return nil, false // Accept has answered
	}
	conn.SetReadLimit(1 << 20)
	return &socket{conn: conn, box: newOutbox()}, true
}

// send sends what is put into the box, until it is closed.
func (k *socket) send(ctx context.Context) error {
	return k.box.send(ctx, func(frames [][]byte) error {
		for _, f := range frames {
			if err := k.conn.Write(ctx, websocket.MessageBinary, f); err != nil {
				return err
			}
		}
		return nil
	})
}

// value puts one JSON value on a channel.
func (k *socket) value(channel spec.Channel, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return errs.New(errs.Internal, "encode: %w", err)
	}
	return k.box.put(channel, data)
}

// peer is what the client's messages act on.
type peer interface {
	write(ctx context.Context, p []byte) error
	closeStdin(ctx context.Context) error
	resize(ctx context.Context, size spec.Size) error
}

// receive acts on the client's messages until it is gone, or sends what makes
// no sense.
func (k *socket) receive(ctx context.Context, p peer) error {
	buf := make([]byte, 64<<10)
	for {
		_, r, err := k.conn.Reader(ctx)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return k.reject(errs.New(errs.Invalid, "a message without a channel: %w", err))
		}
		if err := k.take(ctx, p, spec.Channel(buf[0]), r, buf); err != nil {
			return err
		}
	}
}

func (k *socket) take(ctx context.Context, p peer, channel spec.Channel, r io.Reader, buf []byte) error {
	if channel == spec.ChannelStdin {
		return copyInput(ctx, p, r, buf)
	}
	data, err := io.ReadAll(io.LimitReader(r, 4<<10))
	if err != nil {
		return err
	}
	switch {
	case channel == spec.ChannelClose && len(data) == 1 && spec.Channel(data[0]) == spec.ChannelStdin:
		return p.closeStdin(ctx)
	case channel == spec.ChannelResize:
		var size spec.Size
		if err := json.Unmarshal(data, &size); err != nil {
			return k.reject(errs.New(errs.Invalid, `channel 4 takes {"rows": …, "cols": …}: %w`, err))
		}
		return p.resize(ctx, size)
	}
	return k.reject(errs.New(errs.Invalid, "nothing is taken on channel %d", channel))
}

// copyInput writes one message's data as it arrives.
func copyInput(ctx context.Context, p peer, r io.Reader, buf []byte) error {
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := p.write(ctx, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (k *socket) reject(err error) error {
	_ = k.conn.Close(websocket.StatusPolicyViolation, err.Error()[:min(len(err.Error()), 120)])
	return err
}
