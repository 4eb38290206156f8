package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"berth/base/errs"
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
			push := func() error {
				return showing(p.stdout, quiet, func(show func(spec.Progress)) error {
					return p.node().ImagePush(ctx, request, show)
				})
			}
			err = push()
			if errors.Is(err, errs.Denied) || errors.Is(err, errs.Anonymous) {
				// Layers that the node has not kept may be where only we may read.
				if request.Logins, _ = p.loginsOf(ctx, args[0]); len(request.Logins) > 0 {
					err = push()
				}
			}
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

// loginsOf are the user's for the registries that an image came from.
func (p *program) loginsOf(ctx context.Context, ref string) (spec.Logins, error) {
	image, err := p.node().ImageGet(ctx, ref)
	if err != nil {
		return nil, err
	}
	return logins(image.Sources)
}
