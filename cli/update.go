package cli

import (
	"context"
	"reflect"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/option"
	"berth/spec"
)

func (p *program) update() *cobra.Command {
	var f resourceFlags
	var restart string
	cmd := &cobra.Command{
		Use:   "update [OPTIONS] CONTAINER...",
		Short: "Change limits and restart policy of containers",
		Example: `  berth update -m 512m --cpus 2 web
  berth update --restart unless-stopped web db`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := f.change(restart)
			if err != nil {
				return err
			}
			return p.eachContainer(cmd.Context(), "update", args, func(ctx context.Context, ref string) error {
				_, err := p.node().ContainerUpdate(ctx, ref, change)
				return err
			})
		},
		ValidArgsFunction: completeAll(-1, p.containerNames),
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&restart, "restart", "", "start again when it ends: no, on-failure[:tries], always, unless-stopped")
	completeFlag(cmd, "restart", completeWords("no", "on-failure", "always", "unless-stopped"))
	return cmd
}

// change is what the flags ask for; a limit of zero is none asked for.
func (r *resourceFlags) change(restart string) (spec.ContainerUpdate, error) {
	var change spec.ContainerUpdate
	resources, err := r.resources()
	if err != nil {
		return change, err
	}
	if !reflect.ValueOf(resources).IsZero() {
		change.Resources = &resources
	}
	if restart != "" {
		policy, err := option.Restart(restart)
		if err != nil {
			return change, err
		}
		change.Restart = &policy
	}
	if change == (spec.ContainerUpdate{}) {
		return change, errs.New(errs.Invalid, "say what to change, as in --memory 512m")
	}
	return change, nil
}
