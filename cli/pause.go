package cli

import "github.com/spf13/cobra"

func (p *program) pause() *cobra.Command {
	return &cobra.Command{
		Use:     "pause CONTAINER...",
		Short:   "Freeze the processes of containers",
		Example: "  berth pause web db",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.eachContainer(cmd.Context(), "pause", args, p.node().ContainerPause)
		},
		ValidArgsFunction: completeAll(-1, p.containersThat(running)),
	}
}
