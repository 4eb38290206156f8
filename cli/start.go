package cli

import (
	"context"

	"github.com/spf13/cobra"

	"berth/base/errs"
)

type startVerb struct {
	*program
	attach, interactive bool
	sigProxy            bool
	detachKeys          string
}

func (p *program) start() *cobra.Command {
	s := &startVerb{program: p}
	cmd := &cobra.Command{
		Use:   "start [OPTIONS] CONTAINER...",
		Short: "Start containers that were made or have ended",
		Example: `  berth start web db
  berth start -a job         show its output and exit as it does
  berth start -ai shell      and type into it`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !s.attach && !s.interactive {
				return p.eachContainer(cmd.Context(), "start", args, p.node().ContainerStart)
			}
			if len(args) > 1 {
				return errs.New(errs.Invalid, "-a and -i take one container, not %d", len(args))
			}
			return p.meantContainer(cmd.Context(), s.attached(cmd.Context(), args[0]), args[0])
		},
		ValidArgsFunction: completeAll(-1, p.containersThat(notRunning)),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&s.attach, "attach", "a", false, "show the output, hand signals on, and exit as the container does")
	flags.BoolVarP(&s.interactive, "interactive", "i", false, "connect stdin too")
	flags.BoolVar(&s.sigProxy, "sig-proxy", true, "hand signals on to the container, unless it has a terminal")
	flags.StringVar(&s.detachKeys, "detach-keys", "", "keys that detach from a terminal (default ctrl-p,ctrl-q)")
	return cmd
}

func (s *startVerb) attached(ctx context.Context, ref string) error {
	found, err := s.node().ContainerGet(ctx, ref)
	if err != nil {
		return err
	}
	run := &runVerb{program: s.program, sigProxy: s.sigProxy}
	run.tty = found.Config.TTY
	return startFailure(run.follow(ctx, found, streams{
		stdin: s.interactive && found.Config.OpenStdin, stdout: true, stderr: true,
		tty: found.Config.TTY, detachKeys: s.detachKeys,
	}), codeFailed)
}
