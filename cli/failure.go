package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/terminal"
	"berth/client"
)

// Exit codes of Berth itself.
const (
	codeFailed  = 1
	codeDaemon  = 125 // run: Berth failed, not the container
	codeNoRun   = 126 // run, exec: the command cannot be run
	codeMissing = 127 // run, exec: there is no such command
	codeSignal  = 128 // and the number of the signal
)

// exitError is an exit code, and what to say about it, if anything.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exitWith makes an error of the exit code of a container; nil for 0.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// startFailure is the exit code of run, create or exec when there is no
// process whose code it could be.
func startFailure(err error, otherwise int) error {
	if err == nil {
		return nil
	}
	if _, coded := errors.AsType[*exitError](err); coded {
		return err // there was a process, and the code is its own
	}
	if start, ok := errors.AsType[*client.StartError](err); ok && (start.Code == codeNoRun || start.Code == codeMissing) {
		return &exitError{code: start.Code, err: err}
	}
	return &exitError{code: otherwise, err: err}
}

// report says what went wrong and returns the exit code.
func (p *program) report(ctx context.Context, verb *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	code := codeFailed
	exit, coded := errors.AsType[*exitError](err)
	if coded {
		code = exit.code
		if exit.err == nil {
			return code
		}
	}
	if errors.Is(err, syscall.EPIPE) { // whoever read us has seen enough
		return codeSignal + int(syscall.SIGPIPE)
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errs.Canceled)) {
		fmt.Fprintln(p.stderr, "berth: interrupted")
		return codeSignal + int(interrupt(ctx))
	}
	label := "berth:"
	if terminal.Colors(p.stderr) {
		label = "\x1b[1;31mberth:\x1b[0m"
	}
	if name := verbName(verb); name != "" {
		label += " " + name + ":"
	}
	fmt.Fprintf(p.stderr, "%s %s\n", label, strings.TrimSpace(err.Error()))
	if p.debug {
		fmt.Fprintf(p.stderr, "  kind: %s\n  socket: %s\n  pid: %d\n", errs.KindOf(err), p.socketPath(), os.Getpid())
	}
	return code
}

// interrupt is the signal that ended ctx, as far as its cause tells.
func interrupt(ctx context.Context) syscall.Signal {
	if cause := context.Cause(ctx); cause != nil && strings.Contains(cause.Error(), syscall.SIGTERM.String()) {
		return syscall.SIGTERM
	}
	return syscall.SIGINT
}

// verbName is "network rm" for berth network rm.
func verbName(verb *cobra.Command) string {
	if verb == nil {
		return ""
	}
	_, name, _ := strings.Cut(verb.CommandPath(), " ")
	return name
}

// flagFailure says where the options of a verb are listed.
func flagFailure(cmd *cobra.Command, err error) error {
	failure := errs.New(errs.Invalid, "%w; see %s --help", err, cmd.CommandPath())
	return &exitError{code: usageCode(cmd), err: failure}
}

func usageCode(cmd *cobra.Command) int {
	if cmd.Name() == "run" {
		return codeDaemon
	}
	return codeFailed
}

// arguments wants from least to most arguments; no limit where most is -1.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		want := fmt.Sprintf("exactly %s", count(least, "argument"))
		switch {
		case most < 0:
			want = fmt.Sprintf("at least %s", count(least, "argument"))
		case most == 0:
			want = "no arguments"
		case least != most && len(args) > most:
			want = fmt.Sprintf("at most %s", count(most, "argument"))
		case least != most:
			want = fmt.Sprintf("at least %s", count(least, "argument"))
		}
		failure := errs.New(errs.Invalid, "takes %s, not %d: %s", want, len(args), useLine(cmd))
		return &exitError{code: usageCode(cmd), err: failure}
	}
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// oneOf checks the value of a flag that takes few words.
func oneOf(flag, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return errs.New(errs.Invalid, "--%s %q: expected %s", flag, value, strings.Join(words, ", "))
}
