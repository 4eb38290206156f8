package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/option"
	"berth/cli/table"
	"berth/spec"
)

// pruneVerb is a verb that removes what is not used.
type pruneVerb struct {
	short, example string
	what           string // that is removed
	whatAll        string // and with -a; empty where there is no -a
	act            func(ctx context.Context, filter spec.Filter, all bool) (spec.Pruned, error)
}

func (p *program) prune(v pruneVerb) *cobra.Command {
	var force, all bool
	var filters []string
	cmd := &cobra.Command{
		Use:     "prune [OPTIONS]",
		Short:   v.short,
		Example: v.example,
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := option.Filter(filters)
			if err != nil {
				return err
			}
			what := v.what
			if all {
				what = v.whatAll
			}
			if err := p.confirm(force, "This removes "+what+"."); err != nil {
				return err
			}
			pruned, err := v.act(cmd.Context(), filter, all)
			if err != nil {
				return err
			}
			p.printPruned("", pruned)
			fmt.Fprintf(p.stdout, "Reclaimed space: %s\n", table.Size(pruned.Reclaimed))
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask first")
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "remove only what fits: until=24h, label=key=value")
	if v.whatAll != "" {
		cmd.Flags().BoolVarP(&all, "all", "a", false, v.whatAll)
	}
	return cmd
}

func (p *program) printPruned(title string, pruned spec.Pruned) {
	if len(pruned.Removed) > 0 && title != "" {
		fmt.Fprintln(p.stdout, title)
	}
	for _, name := range pruned.Removed {
		fmt.Fprintln(p.stdout, name)
	}
	if len(pruned.Removed) > 0 && title != "" {
		fmt.Fprintln(p.stdout)
	}
}

// confirm asks whether to go on.
func (p *program) confirm(force bool, warning string) error {
	if force {
		return nil
	}
	fmt.Fprintf(p.stderr, "%s Go on? [y/N] ", warning)
	answer, err := bufio.NewReader(p.stdin).ReadString('\n')
	if err != nil {
		fmt.Fprintln(p.stderr)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errs.New(errs.Canceled, "nothing was removed; -f goes on without asking")
}
