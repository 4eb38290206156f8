package streaming

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
)

// watched tells when a client has gone that took the connection over: after
// that net/http does not look any more, and SPDY's library not after the client
// has said that it will go. The connection ends with ctx.
type watched struct {
	http.ResponseWriter
	ctx   context.Context //nolint:containedctx // a connection has no other way to end with one
	gone  func()
	pumps *sync.WaitGroup
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
	from, to := io.Pipe()
	c := &watchedConn{Conn: conn, from: from}
	context.AfterFunc(w.ctx, func() { _ = c.Close() })
	all := io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)
	w.pumps.Go(func() {
		defer w.gone()
		_, err := io.Copy(to, all)
		_ = to.CloseWithError(cmp.Or(err, io.EOF))
	})
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

// watchedConn reads what a pump has read.
type watchedConn struct {
	net.Conn
	from *io.PipeReader
}

// Read has what we closed end as what the client closes: nobody is to log it.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	if errors.Is(err, io.ErrClosedPipe) {
		err = io.EOF
	}
	return n, err
}

func (c *watchedConn) Close() error { return errors.Join(c.from.Close(), c.Conn.Close()) }
