package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (p *program) create() *cobra.Command {
	f := &containerFlags{}
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Make a container without starting it",
		Example: `  berth create --name job -v data:/data alpine sh -c 'date > /data/now'
  berth start -a job`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := f.config(cmd.Flags(), args)
			if err != nil {
				return err
			}
			config.StdinOnce = config.OpenStdin
			made, err := p.make(cmd.Context(), config, f)
			if err != nil {
				return startFailure(err, codeFailed)
			}
			fmt.Fprintln(p.stdout, made.ID)
			return nil
		},
		ValidArgsFunction: completeInTurn(p.imageNames),
	}
	f.add(cmd.Flags())
	p.completeContainerFlags(cmd)
	return cmd
}
