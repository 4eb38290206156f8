package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"berth/cli/option"
	"berth/cli/table"
	"berth/client"
)

func (p *program) system() *cobra.Command {
	return p.management("system", "Work with the node: df info events prune scrub",
		`  berth system df
  berth system prune -f`,
		p.systemDf(), p.info(), p.events(), p.systemPrune(), p.systemScrub())
}

func (p *program) systemPrune() *cobra.Command {
	var opts client.PruneOptions
	var force bool
	var filters []string
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove all that is not used",
		Long: `Remove the containers that do not run, the networks that no container is on, and
the images without a name: with -a all images that no container uses, with
--volumes the anonymous volumes that no container uses. Without a filter what
builds have left goes as well.`,
		Example: `  berth system prune
  berth system prune -af --volumes`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if opts.Filter, err = option.Filter(filters); err != nil {
				return err
			}
			return p.pruneAll(cmd.Context(), opts, force)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&opts.All, "all", "a", false, "all images that no container uses, not only those without a name")
	flags.BoolVar(&opts.Volumes, "volumes", false, "anonymous volumes too")
	flags.BoolVarP(&force, "force", "f", false, "do not ask first")
	flags.StringArrayVar(&filters, "filter", nil, "remove only what fits: until=24h, label=key=value")
	return cmd
}

func (p *program) pruneAll(ctx context.Context, opts client.PruneOptions, force bool) error {
	what := "all containers that do not run, all networks that no container is on, and all images without a name"
	if opts.All {
		what = "all containers that do not run, all networks that no container is on, and all images that no container uses"
	}
	if opts.Volumes {
		what += ", and all anonymous volumes that no container uses"
	}
	if len(opts.Filter) == 0 {
		what += ", and what builds have left"
	}
	if err := p.confirm(force, "This removes "+what+"."); err != nil {
		return err
	}
	pruned, err := p.node().SystemPrune(ctx, opts)
	if err != nil {
		return err
	}
	p.printPruned("Containers:", pruned.Containers)
	p.printPruned("Networks:", pruned.Networks)
	p.printPruned("Build cache:", pruned.BuildCache)
	p.printPruned("Images:", pruned.Images)
	p.printPruned("Volumes:", pruned.Volumes)
	total := pruned.Containers.Reclaimed + pruned.Networks.Reclaimed + pruned.Images.Reclaimed + pruned.BuildCache.Reclaimed + pruned.Volumes.Reclaimed
	fmt.Fprintf(p.stdout, "Reclaimed space: %s\n", table.Size(total))
	return nil
}
