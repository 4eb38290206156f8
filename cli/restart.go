package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (p *program) restart() *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use:   "restart [OPTIONS] CONTAINER...",
		Short: "Stop containers and start them again",
		Example: `  berth restart web
  berth restart -t 0 web db`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.eachContainer(cmd.Context(), "restart", args, func(ctx context.Context, ref string) error {
				return p.node().ContainerRestart(ctx, ref, f.timeout(cmd.Flags()), f.signal)
			})
		},
		ValidArgsFunction: completeAll(-1, p.containerNames),
	}
	f.add(cmd.Flags())
	completeFlag(cmd, "signal", completeWords(signalNames()...))
	return cmd
}
