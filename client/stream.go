package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"berth/spec"
)

// eachValue decodes one JSON value after the other until the stream ends.
func eachValue[T any](ctx context.Context, c *Client, r io.Reader, fn func(T) error) error {
	dec := json.NewDecoder(bufio.NewReaderSize(r, 64<<10))
	for {
		var v T
		switch err := dec.Decode(&v); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return c.unreachable(ctx, err)
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}

// copyBody copies an answer to w. Where the node broke it off, the trailer
// says why.
func (c *Client) copyBody(ctx context.Context, resp *http.Response, w io.Writer) error {
	out := &remembering{w: w}
	_, err := io.CopyBuffer(out, struct{ io.Reader }{resp.Body}, make([]byte, 256<<10))
	if out.err != nil {
		return out.err
	}
	if err != nil {
		return c.unreachable(ctx, err)
	}
	return trailerProblem(resp)
}

// remembering tells the errors of a writer from those of the reader.
type remembering struct {
	w   io.Writer
	err error
}

func (r *remembering) Write(p []byte) (int, error) {
	n, err := r.w.Write(p)
	if err != nil {
		r.err = err
	}
	return n, err
}

func trailerProblem(resp *http.Response) error {
	text := resp.Trailer.Get(problemTrailer)
	if text == "" {
		return nil
	}
	var p spec.Problem
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		p.Detail = text
	}
	return asError(p)
}

// serverEvent is one event of a text/event-stream; one without data only tells
// where to go on from.
type serverEvent struct {
	id, kind string
	data     []byte
}

// eachEvent reads server-sent events until the stream ends.
func (c *Client) eachEvent(ctx context.Context, r io.Reader, fn func(serverEvent) error) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	var ev serverEvent
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) { // the whole answer: all that was asked for
			return nil
		}
		if err != nil {
			return c.unreachable(ctx, err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			if ev.data != nil || ev.id != "" {
				if err := fn(ev); err != nil {
					return err
				}
			}
			ev = serverEvent{}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "id":
			ev.id = string(value)
		case "event":
			ev.kind = string(value)
		case "data":
			ev.data = append(ev.data, value...)
		}
	}
}
