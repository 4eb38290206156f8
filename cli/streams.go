package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth/base/errs"
	"berth/cli/terminal"
	"berth/client"
	"berth/spec"
)

// streams are what of ours a process in a container is connected to.
type streams struct {
	stdin, stdout, stderr bool
	tty                   bool
	detachKeys            string
}

// usable refuses a terminal for the container where we have none to type in.
func (p *program) usable(s streams) error {
	if s.tty && s.stdin && !terminal.Is(p.stdin) {
		return errs.New(errs.Invalid, "stdin is not a terminal: leave -t out, as in echo … | berth run -i")
	}
	_, err := client.ParseDetachKeys(s.detachKeys)
	return err
}

// options connects the streams; the terminal, if there is one and it is
// used, is raw until restore is called.
func (p *program) options(ctx context.Context, s streams) (opts client.AttachOptions, restore func(), err error) {
	if err := p.usable(s); err != nil {
		return opts, nil, err
	}
	opts = client.AttachOptions{TTY: s.tty, DetachKeys: s.detachKeys}
	if s.stdin {
		opts.Stdin = p.stdin
	}
	if s.stdout {
		opts.Stdout = p.stdout
	}
	if s.stderr {
		opts.Stderr = p.stderr
	}
	restore = func() {}
	if s.tty && s.stdin {
		if restore, err = terminal.Raw(p.stdin); err != nil {
			return opts, nil, errs.New(errs.Internal, "make the terminal raw: %w", err)
		}
	}
	if s.tty && s.stdout {
		opts.Resize = terminal.Resizes(ctx, p.stdout)
	}
	return opts, restore, nil
}

// proxied are the signals handed on to a container: all but those that the
// kernel or Go's runtime send for their own ends.
func proxied() []os.Signal {
	kept := []syscall.Signal{
		syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGURG, syscall.SIGWINCH,
		syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGTTIN, syscall.SIGTTOU,
		syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGPROF,
	}
	var all []os.Signal
	for s := syscall.Signal(1); s < 32; s++ {
		if !slices.Contains(kept, s) {
			all = append(all, s)
		}
	}
	return all
}

// errForced says that the user would not wait any longer.
var errForced = errors.New("interrupted three times; the container goes on")

// proxySignals hands signals on to the container until stop is called. The
// context that it returns outlives an interrupted ctx, since that interrupt is
// the container's; the third one in a row ends it all the same.
func (p *program) proxySignals(ctx context.Context, id string) (_ context.Context, stop func()) {
	proxyCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	arrived := make(chan os.Signal, 64)
	signal.Notify(arrived, proxied()...)
	var proxy sync.WaitGroup // ended by stop
	proxy.Go(func() {
		asked := 0
		for {
			select {
			case <-proxyCtx.Done():
				return
			case s := <-arrived:
				if s == os.Interrupt || s == syscall.SIGTERM {
					asked++
				}
				if asked == 3 {
					cancel(errForced)
					return
				}
				proxy.Go(func() { p.forward(proxyCtx, id, s) })
			}
		}
	})
	return proxyCtx, func() {
		signal.Stop(arrived)
		cancel(nil)
		proxy.Wait()
	}
}

// forward sends one signal to the container. While the node is away it tries
// again; a container that does not run any more needs no signal.
func (p *program) forward(ctx context.Context, id string, s os.Signal) {
	number := fmt.Sprint(int(s.(syscall.Signal)))
	for range 100 {
		err := p.node().ContainerKill(ctx, id, number)
		if !errors.Is(err, errs.Unavailable) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// hangUp ends ctx when the user's terminal goes away, so that it is never
// left raw and what we wait for is let go.
func hangUp(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGQUIT)
}

// detached says that the container goes on, and how to come back.
func (p *program) detached(name string) {
	fmt.Fprintf(p.stderr, "\nDetached; berth attach %s comes back\n", name)
}

// ended says what is worth knowing of how a container ended, and makes its
// exit code ours.
func (p *program) ended(exit spec.Exit) error {
	switch {
	case exit.Unknown:
		return &exitError{code: exit.Code, err: errs.New(errs.Internal, "the exit code of the container is not known")}
	case exit.OOMKilled:
		return &exitError{code: exit.Code, err: errs.New(errs.Exhausted, "the container ran out of memory and was killed; give it more with --memory")}
	}
	return exitWith(exit.Code)
}
