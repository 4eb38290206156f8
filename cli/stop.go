package cli

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// stopFlags are what stop and restart take.
type stopFlags struct {
	signal  string
	seconds int
}

func (f *stopFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&f.signal, "signal", "s", "", "signal to send (default the container's own, TERM)")
	flags.IntVarP(&f.seconds, "time", "t", 0, "seconds to wait before it is killed, -1 for ever (default the container's own, 10)")
	flags.IntVar(&f.seconds, "timeout", 0, "the same as --time")
	_ = flags.MarkHidden("timeout")
}

// timeout is nil where the container's own is to be used.
func (f *stopFlags) timeout(flags *pflag.FlagSet) *int {
	if flags.Changed("time") || flags.Changed("timeout") {
		return &f.seconds
	}
	return nil
}

func (p *program) stop() *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use:   "stop [OPTIONS] CONTAINER...",
		Short: "Stop containers: ask them to end, then kill them",
		Example: `  berth stop web
  berth stop -t 60 db
  berth stop $(berth ps -q)`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.eachContainer(cmd.Context(), "stop", args, func(ctx context.Context, ref string) error {
				return p.node().ContainerStop(ctx, ref, f.timeout(cmd.Flags()), f.signal)
			})
		},
		ValidArgsFunction: completeAll(-1, p.containersThat(running)),
	}
	f.add(cmd.Flags())
	completeFlag(cmd, "signal", completeWords(signalNames()...))
	return cmd
}
