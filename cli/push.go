package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"berth/spec"
)

func (p *program) push() *cobra.Command {
	var request spec.PushRequest
	var quiet bool
	cmd := &cobra.Command{
		Use:   "push [OPTIONS] NAME[:TAG]",
		Short: "Send an image to the registry that its name points to",
		Example: `  berth tag app localhost:5000/app:1.2
  berth push localhost:5000/app:1.2`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			request.Reference = args[0]
			auth, err := login(args[0])
			if err != nil {
				return err
			}
			request.Auth = auth
			err = showing(p.stdout, quiet, func(show func(spec.Progress)) error {
				return p.node().ImagePush(ctx, request, show)
			})
			if err != nil {
				return p.meantImage(ctx, err, args[0])
			}
			fmt.Fprintln(p.stdout, fullName(args[0]))
			return nil
		},
		ValidArgsFunction: completeAll(1, p.imageNames),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show how it goes")
	cmd.Flags().StringVar(&request.Platform, "platform", "", "push only this os/arch[/variant]")
	cmd.Flags().BoolVar(&request.Insecure, "insecure", false, "allow plain HTTP and unknown certificates")
	return cmd
}
