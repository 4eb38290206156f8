package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (p *program) kill() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:   "kill [OPTIONS] CONTAINER...",
		Short: "Send a signal to containers, KILL if none is named",
		Example: `  berth kill web
  berth kill -s HUP web`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.eachContainer(cmd.Context(), "kill", args, func(ctx context.Context, ref string) error {
				return p.node().ContainerKill(ctx, ref, signal)
			})
		},
		ValidArgsFunction: completeAll(-1, p.containersThat(running)),
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "name or number of the signal")
	completeFlag(cmd, "signal", completeWords(signalNames()...))
	return cmd
}

func signalNames() []string {
	return []string{"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "WINCH"}
}
