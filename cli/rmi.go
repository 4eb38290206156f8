package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"berth/base/errs"
)

func (p *program) rmi() *cobra.Command {
	var force, noPrune bool
	cmd := &cobra.Command{
		Use:   "rmi [OPTIONS] IMAGE...",
		Short: "Remove images",
		Long: `Remove images. A name that is not the last one of its image is only taken off;
an id removes the image if it has one name at most, or with -f.`,
		Example: `  berth rmi alpine
  berth rmi $(berth images -q --filter dangling=true)`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed []error
			for _, ref := range args {
				if err := p.removeImage(cmd.Context(), ref, force); err != nil {
					failed = append(failed, err)
				}
			}
			return errors.Join(failed...)
		},
		ValidArgsFunction: completeAll(-1, p.imageNames),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "with all its names, and even if stopped containers use it")
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "taken for docker's sake; there are no parents without names")
	_ = cmd.Flags().MarkHidden("no-prune")
	return cmd
}

func (p *program) removeImage(ctx context.Context, ref string, force bool) error {
	removed, err := p.node().ImageRemove(ctx, ref, force)
	if force && errors.Is(err, errs.NotFound) {
		return nil
	}
	for _, r := range removed {
		if r.Untagged != "" {
			fmt.Fprintln(p.stdout, "Untagged:", familiar(r.Untagged))
		}
		if r.Deleted != "" {
			fmt.Fprintln(p.stdout, "Deleted:", r.Deleted)
		}
	}
	return p.meantImage(ctx, err, ref)
}
