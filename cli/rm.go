package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"berth/base/errs"
)

func (p *program) rm() *cobra.Command {
	var force, volumes bool
	cmd := &cobra.Command{
		Use:   "rm [OPTIONS] CONTAINER...",
		Short: "Remove containers",
		Example: `  berth rm job
  berth rm -f web            even if it runs
  berth rm -v $(berth ps -aq --filter status=exited)`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.eachContainer(cmd.Context(), "rm", args, func(ctx context.Context, ref string) error {
				err := p.node().ContainerRemove(ctx, ref, force, volumes)
				if force && errors.Is(err, errs.NotFound) {
					return nil // gone is what was asked for
				}
				return err
			})
		},
		ValidArgsFunction: completeAll(-1, p.containerNames),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill containers that run; those that are not there are no failure")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove their anonymous volumes too")
	return cmd
}
