package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"

	"berth/base/errs"
	"berth/spec"
)

// StartError is a process that could not be started, and the exit code that
// a shell would give for it: 127 where there is no such command, 126 where it
// cannot be run, 128 for everything else.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }

func (e *StartError) Unwrap() error { return e.Err }

var kinds = []errs.Kind{
	errs.Invalid, errs.NotFound, errs.Exists, errs.Conflict, errs.Denied, errs.Anonymous,
	errs.Exhausted, errs.Unavailable, errs.Unsupported, errs.Canceled, errs.Timeout, errs.Internal,
}

// problemOf reads the error that the node answered with.
func problemOf(resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if text := resp.Header.Get(problemTrailer); text != "" {
		data = []byte(text) // of an answer to HEAD
	}
	p := spec.Problem{Status: resp.StatusCode}
	if json.Unmarshal(data, &p) != nil || p.Detail == "" {
		p.Detail = strings.TrimSpace(string(data))
	}
	if p.Detail == "" {
		p.Detail = "the node answered " + resp.Status
	}
	return asError(p)
}

// asError gives a problem its kind back.
func asError(p spec.Problem) error {
	kind := errs.Kind(p.Title)
	if !slices.Contains(kinds, kind) {
		kind = kindOfStatus(p.Status)
	}
	err := errs.New(kind, "%s", p.Detail)
	if p.ExitCode != 0 {
		return &StartError{p.ExitCode, err}
	}
	return err
}

// kindOfStatus is for answers that are not Berth's own.
func kindOfStatus(status int) errs.Kind {
	switch status {
	case http.StatusUnauthorized:
		return errs.Anonymous
	case http.StatusForbidden:
		return errs.Denied
	case http.StatusNotFound:
		return errs.NotFound
	case http.StatusConflict:
		return errs.Conflict
	case http.StatusTooManyRequests:
		return errs.Exhausted
	case http.StatusNotImplemented:
		return errs.Unsupported
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return errs.Unavailable
	case http.StatusGatewayTimeout:
		return errs.Timeout
	}
	if status >= http.StatusBadRequest && status < http.StatusInternalServerError {
		return errs.Invalid
	}
	return errs.Internal
}

// unreachable says why there is no answer, and what to do about it.
func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ask the node: %w", context.Cause(ctx))
	case errors.Is(err, fs.ErrPermission):
		return errs.New(errs.Denied, "you may not use %s: become root, or a member of the group berth", c.socket)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), c.isGone():
		err = errs.New(errs.Unavailable, "no node answers at %s: is it running? start it with berth up", c.socket)
	default:
		err = errs.New(errs.Unavailable, "the connection to the node at %s broke off: %w", c.socket, err)
	}
	return &goneError{err}
}

// isGone says whether the place has gone where a node would answer: who waited
// there for one that did not come back is told by the end of the connection.
func (c *Client) isGone() bool {
	_, err := os.Lstat(c.socket)
	return errors.Is(err, fs.ErrNotExist)
}

// goneError is the node being away, not something that it answered.
type goneError struct{ err error }

func (e *goneError) Error() string { return e.err.Error() }

func (e *goneError) Unwrap() error { return e.err }
