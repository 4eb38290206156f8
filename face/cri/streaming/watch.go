package streaming

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
)

// watched tells when a client has gone that took the connection over: after
// that net/http does not look any more.
// The connection ends with ctx.
type watched struct {
	http.ResponseWriter
	ctx  context.Context //nolint:containedctx // a connection has no other way to end with one
	gone func()
}

// Hijack is http.Hijacker's.
func (w *watched) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hijacker, ok := w.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be taken over")
	}
	conn, both, err := hijacker.Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, err := both.Peek(both.Reader.Buffered()) // what was read already
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	c := &watchedConn{Conn: conn, gone: w.gone}
	context.AfterFunc(w.ctx, func() { _ = conn.Close() })
	in := bufio.NewReader(io.MultiReader(bytes.NewReader(bytes.Clone(early)), c))
	return c, bufio.NewReadWriter(in, bufio.NewWriter(c)), nil
}

type watchedConn struct {
	net.Conn
	gone func()
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}
