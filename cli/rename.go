package cli

import "github.com/spf13/cobra"

func (p *program) rename() *cobra.Command {
	return &cobra.Command{
		Use:     "rename CONTAINER NAME",
		Short:   "Give a container another name",
		Example: "  berth rename web web-old",
		Args:    arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := p.node().ContainerRename(cmd.Context(), args[0], args[1])
			return p.meantContainer(cmd.Context(), err, args[0])
		},
		ValidArgsFunction: completeAll(1, p.containerNames),
	}
}
