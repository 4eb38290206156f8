package client

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"

	"berth/base/errs"
	"berth/spec"
)

// ErrDetached says that the user typed the detach keys; the process goes on.
var ErrDetached = errors.New("detached")

// AttachOptions are the near ends of a process's streams.
type AttachOptions struct {
	// Stdin is read until its end, unless it is nil; the end is passed on. A
	// Read that blocks is left behind when Attach returns.
	Stdin io.Reader
	// Stdout and Stderr get the output; nil drops it. With a terminal all of
	// it is Stdout's.
	Stdout, Stderr io.Writer
	// TTY says that the process has a terminal: only then are DetachKeys
	// looked for.
	TTY bool
	// Resize gives the sizes of the user's terminal, the first one at once.
	Resize <-chan spec.Size
	// DetachKeys ends the attach without ending the process: keys separated
	// by commas, each a character or ctrl- and one of a-z @ [ \ ] ^ _.
	// "ctrl-p,ctrl-q" when empty.
	DetachKeys string
	// Ready is called once, when everything the process writes from now on
	// will arrive: the time to start it. Its error ends the attach.
	Ready func(ctx context.Context) error
	// Logs gives what is in the log already, before what is new.
	Logs bool
}

// Attach connects to the streams of a container, which need not run yet,
// until its process ends, and returns how it ended. It returns ErrDetached
// when the user typed the detach keys. It outlives a node that goes away and
// comes back: not a byte of output is lost or doubled.
func (c *Client) Attach(ctx context.Context, ref string, opts AttachOptions) (spec.Exit, error) {
	a := &attachment{client: c, opts: opts, ref: ref}
	a.path = func() (string, query) {
		q := query{}.flag("stdin", opts.Stdin != nil).flag("logs", opts.Logs && a.position == "")
		if a.position != "" {
			q.str("from", a.position).str("skip", strconv.FormatInt(a.received, 10))
		}
		return at("containers", a.ref, "attach"), q
	}
	return a.run(ctx)
}

// ExecCreate prepares a further process in a running container.
func (c *Client) ExecCreate(ctx context.Context, ref string, config spec.ExecConfig) (spec.Exec, error) {
	return post[spec.Exec](ctx, c, at("containers", ref, "execs"), nil, config)
}

// ExecStart runs a process that ExecCreate prepared, connected to its streams,
// until it ends. Its output is kept nowhere: when the node goes away the
// streams are gone (errs.Unavailable), and the process goes on.
func (c *Client) ExecStart(ctx context.Context, id string, opts AttachOptions) (spec.Exit, error) {
	a := &attachment{client: c, opts: opts, ref: id, exec: true}
	a.path = func() (string, query) {
		return at("execs", id, "attach"), query{}.flag("stdin", opts.Stdin != nil)
	}
	return a.run(ctx)
}

// ExecDetached runs a process that ExecCreate prepared with Detach, and
// returns when it has been started.
func (c *Client) ExecDetached(ctx context.Context, id string) error {
	return c.act(ctx, at("execs", id, "start"), nil, nil)
}

// ExecGet returns one exec, for some minutes after its end too.
func (c *Client) ExecGet(ctx context.Context, id string) (spec.Exec, error) {
	return get[spec.Exec](ctx, c, at("execs", id), nil)
}

// ExecWait waits for the end of a started exec, also across a node that goes
// away and comes back.
func (c *Client) ExecWait(ctx context.Context, id string) (spec.Exec, error) {
	if err := c.Ping(ctx); err != nil {
		return spec.Exec{}, err
	}
	var out spec.Exec
	first := true
	err := outlive(ctx, func(alive func()) (err error) {
		if !first {
			if err := c.Ping(ctx); err != nil {
				return err
			}
		}
		first = false
		alive()
		out, err = get[spec.Exec](ctx, c, at("execs", id, "wait"), nil)
		return err
	})
	return out, err
}

// ExecResize sets the size of an exec's terminal.
func (c *Client) ExecResize(ctx context.Context, id string, size spec.Size) error {
	return c.act(ctx, at("execs", id, "resize"), nil, size)
}

// attachment is one Attach or ExecStart, over as many connections as it takes.
type attachment struct {
	client *Client
	opts   AttachOptions
	path   func() (string, query)

	ref      string // the full id, once the node has told it
	position string // where in the log the node's first message said we are
	received int64  // bytes of output since position
	ready    bool   // opts.Ready was called
	keys     []byte
	input    chan chunk // what the user typed
	unsent   *chunk     // the part of it that a broken connection did not take
	ended    bool       // all of it was sent
	over     <-chan struct{}
	reading  sync.WaitGroup // of Stdin; not waited for, since a Read cannot be stopped
	exec     bool
}

// run connects, and again when the connection is lost, if it may.
func (a *attachment) run(ctx context.Context) (spec.Exit, error) {
	keys, err := ParseDetachKeys(a.opts.DetachKeys)
	if err != nil {
		return spec.Exit{}, err
	}
	if a.opts.TTY {
		a.keys = keys
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.input, a.over = make(chan chunk), ctx.Done()
	var exit spec.Exit
	try := func(alive func()) (err error) {
		exit, err = a.connection(ctx, alive)
		return err
	}
	if a.exec {
		err = once(ctx, try)
	} else {
		err = outlive(ctx, try)
	}
	return exit, err
}

// ParseDetachKeys reads DetachKeys of AttachOptions; errs.Invalid says what
// is wrong with them.
func ParseDetachKeys(keys string) ([]byte, error) {
	if keys == "" {
		keys = "ctrl-p,ctrl-q"
	}
	var out []byte
	for key := range splitKeys(keys) {
		b, ok := keyByte(key)
		if !ok {
			return nil, errs.New(errs.Invalid, "detach keys %q: %q is neither a character nor ctrl- and one of a-z @ [ \\ ] ^ _", keys, key)
		}
		out = append(out, b)
	}
	return out, nil
}
