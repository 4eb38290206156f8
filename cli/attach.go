package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/terminal"
	"berth/client"
	"berth/spec"
)

func (p *program) attach() *cobra.Command {
	var noStdin, sigProxy bool
	var detachKeys string
	cmd := &cobra.Command{
		Use:   "attach [OPTIONS] CONTAINER",
		Short: "Connect the terminal to a running container",
		Long: `Connect stdin, stdout and stderr to those of a running container, until it ends.
Signals, ctrl-C among them, go to the container. In a container with a terminal
ctrl-p ctrl-q detaches and leaves it running.`,
		Example: `  berth attach shell
  berth attach --no-stdin --sig-proxy=false web`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s := streams{stdin: !noStdin, stdout: true, stderr: true, detachKeys: detachKeys}
			return p.meantContainer(cmd.Context(), p.attachTo(cmd.Context(), args[0], s, sigProxy), args[0])
		},
		ValidArgsFunction: completeAll(1, p.containersThat(running)),
	}
	flags := cmd.Flags()
	flags.BoolVar(&noStdin, "no-stdin", false, "do not connect stdin")
	flags.BoolVar(&sigProxy, "sig-proxy", true, "hand signals on to the container, unless it has a terminal")
	flags.StringVar(&detachKeys, "detach-keys", "", "keys that detach from a terminal (default ctrl-p,ctrl-q)")
	return cmd
}

func (p *program) attachTo(ctx context.Context, ref string, s streams, sigProxy bool) error {
	found, err := p.node().ContainerGet(ctx, ref)
	if err != nil {
		return err
	}
	if err := mustRun(found); err != nil {
		return err
	}
	s.tty = found.Config.TTY
	s.stdin = s.stdin && found.Config.OpenStdin
	var stop func()
	if sigProxy && !s.tty {
		ctx, stop = p.proxySignals(ctx, found.ID)
	} else {
		ctx, stop = hangUp(ctx)
	}
	defer stop()
	opts, restore, err := p.options(ctx, s)
	if err != nil {
		return err
	}
	defer restore()
	p.redraw(ctx, found.ID, s)
	// One that has ended by now would be attached to for a next run.
	opts.Ready = func(ctx context.Context) error {
		now, err := p.node().ContainerGet(ctx, found.ID)
		if err != nil {
			return err
		}
		return mustRun(now)
	}
	exit, err := p.node().Attach(ctx, found.ID, opts)
	restore()
	if errors.Is(err, client.ErrDetached) {
		p.detached(found.Name)
		return nil
	}
	if err != nil {
		return err
	}
	return p.ended(exit)
}

func mustRun(c spec.Container) error {
	if running(c.State.Status) {
		return nil
	}
	return errs.New(errs.Conflict, "%s is %s; start it with berth start -a %s", c.Name, c.State.Status, c.Name)
}

// redraw makes what runs in the terminal paint it again: it does when the
// size changes, so the size is changed by a line; Attach sets it right.
func (p *program) redraw(ctx context.Context, id string, s streams) {
	size := terminal.Size(p.stdout)
	if !s.tty || size.Rows == 0 {
		return
	}
	size.Rows++
	_ = p.node().ContainerResize(ctx, id, size)
}
