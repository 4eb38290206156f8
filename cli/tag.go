package cli

import "github.com/spf13/cobra"

func (p *program) tag() *cobra.Command {
	return &cobra.Command{
		Use:     "tag IMAGE NAME[:TAG]",
		Short:   "Give an image a further name",
		Example: "  berth tag app:latest localhost:5000/app:1.2",
		Args:    arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := p.node().ImageTag(cmd.Context(), args[0], args[1])
			return p.meantImage(cmd.Context(), err, args[0])
		},
		ValidArgsFunction: completeAll(2, p.imageNames),
	}
}
