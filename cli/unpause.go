package cli

import "github.com/spf13/cobra"

func (p *program) unpause() *cobra.Command {
	return &cobra.Command{
		Use:     "unpause CONTAINER...",
		Short:   "Let frozen containers go on",
		Example: "  berth unpause web db",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.eachContainer(cmd.Context(), "unpause", args, p.node().ContainerUnpause)
		},
		ValidArgsFunction: completeAll(-1, p.containersThat(running)),
	}
}
