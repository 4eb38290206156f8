package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (p *program) diff() *cobra.Command {
	return &cobra.Command{
		Use:     "diff CONTAINER",
		Short:   "List what differs from the image: A added, C changed, D deleted",
		Example: "  berth diff web",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			changes, err := p.node().ContainerChanges(cmd.Context(), args[0])
			for _, change := range changes {
				fmt.Fprintln(p.stdout, change.Kind, change.Path)
			}
			return p.meantContainer(cmd.Context(), err, args[0])
		},
		ValidArgsFunction: completeAll(1, p.containerNames),
	}
}
