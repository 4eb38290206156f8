// Package client talks to a Berth node over its unix socket: one method for
// each operation of the REST API, with the names of the API's nouns first
// (ContainerStart, ImagePull, …).
//
// Errors carry the kinds of base/errs, as the node gave them. A socket nobody
// listens on is errs.Unavailable, one that may not be opened errs.Denied.
// Attach, ContainerWait and ContainerLogs with Follow outlive a node that
// goes away and comes back within thirty seconds: no byte of output is lost or
// doubled, no exit code missed. A Client may be used by many goroutines.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	jsonv1 "github.com/go-json-experiment/json/v1"

	"berth/base/errs"
	"berth/spec"
)

const (
	prefix = "/v1"
	// patience is how long a stream waits for a node that went away.
	patience = 30 * time.Second
)

// Client is a node's API.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client of the node that listens on the unix socket of that
// path. It does not connect yet.
func New(socket string) *Client {
	c := &Client{socket: socket}
	var d net.Dialer
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
	}}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call: body is JSON unless stream is set.
type request struct {
	method string
	path   string
	query  url.Values
	body   any
	stream io.Reader
	kind   string // content type of stream
	after  string // id of the last event seen
}

// send makes the call and returns the answer if it is a good one; its body is
// the caller's to close.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	body, kind := r.stream, r.kind
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, errs.New(errs.Invalid, "encode the request: %w", err)
		}
		body, kind = bytes.NewReader(data), "application/json"
	}
	address := "http://berth" + prefix + r.path
	if len(r.query) > 0 {
		address += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, address, body)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if r.after != "" {
		req.Header.Set("Last-Event-ID", r.after)
	}
	req.Header.Set("Te", "trailers") // downloads tell in a trailer why they broke off
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer drain(resp)
		return nil, problemOf(resp)
	}
	return resp, nil
}

// drain reads what little is left, so that the connection is used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
}

// call makes the call and decodes the JSON answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer drain(resp)
	if out == nil {
		return nil
	}
	// Whole and with version 2 of the package: a list of a hundred containers
	// is mostly the time to decode it, and this takes a third of it.
	var body bytes.Buffer
	body.Grow(int(min(max(resp.ContentLength, 0), 1<<20)) + bytes.MinRead)
	if _, err = body.ReadFrom(resp.Body); err == nil {
		err = jsonv1.Unmarshal(body.Bytes(), out)
	}
	if err != nil {
		return c.unreachable(ctx, fmt.Errorf("read the answer: %w", err))
	}
	return nil
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.call(ctx, request{method: http.MethodGet, path: path, query: query}, &out)
	return out, err
}

func post[T any](ctx context.Context, c *Client, path string, query url.Values, body any) (T, error) {
	var out T
	err := c.call(ctx, request{method: http.MethodPost, path: path, query: query, body: body}, &out)
	return out, err
}

func (c *Client) act(ctx context.Context, path string, query url.Values, body any) error {
	return c.call(ctx, request{method: http.MethodPost, path: path, query: query, body: body}, nil)
}

func remove[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.call(ctx, request{method: http.MethodDelete, path: path, query: query}, &out)
	return out, err
}

// at joins path segments, each escaped: references contain slashes.
func at(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// query builds the values of a URL; empty ones are left out.
type query url.Values

func (q query) str(key, value string) query {
	if value != "" {
		url.Values(q).Set(key, value)
	}
	return q
}

func (q query) flag(key string, value bool) query {
	if value {
		url.Values(q).Set(key, "true")
	}
	return q
}

func (q query) num(key string, value *int) query {
	if value != nil {
		url.Values(q).Set(key, strconv.Itoa(*value))
	}
	return q
}

func (q query) time(key string, value time.Time) query {
	if !value.IsZero() {
		url.Values(q).Set(key, value.UTC().Format(time.RFC3339Nano))
	}
	return q
}

func (q query) list(key string, values []string) query {
	for _, v := range values {
		url.Values(q).Add(key, v)
	}
	return q
}

func (q query) filter(f spec.Filter) query {
	for key, values := range f {
		for _, v := range values {
			url.Values(q).Add("filter", key+"="+v)
		}
	}
	return q
}

func (q query) values() url.Values { return url.Values(q) }
