package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"berth/cli/progress"
	"berth/spec"
)

func (p *program) pull() *cobra.Command {
	var request spec.PullRequest
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Short: "Fetch an image from its registry",
		Long: `Fetch an image from its registry. Docker's own login is used: credentials come
from config.json in ~/.docker or DOCKER_CONFIG, and its credential helpers.`,
		Example: `  berth pull alpine
  berth pull localhost:5000/app:1.2
  berth pull --platform linux/arm64 alpine@sha256:…`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Reference = args[0]
			_, err := p.pullImage(cmd.Context(), request, p.stdout, quiet)
			if err != nil {
				return err
			}
			fmt.Fprintln(p.stdout, fullName(args[0]))
			return nil
		},
		ValidArgsFunction: completeAll(1, p.imageNames),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show how it goes")
	cmd.Flags().StringVar(&request.Platform, "platform", "", "os/arch[/variant] to choose from an index")
	cmd.Flags().BoolVar(&request.Insecure, "insecure", false, "allow plain HTTP and unknown certificates")
	return cmd
}

// pullImage pulls and tells w how it goes, unless quiet.
func (p *program) pullImage(ctx context.Context, request spec.PullRequest, w io.Writer, quiet bool) (image spec.Image, err error) {
	if request.Auth, err = login(request.Reference); err != nil {
		return spec.Image{}, err
	}
	err = showing(w, quiet, func(show func(spec.Progress)) error {
		image, err = p.node().ImagePull(ctx, request, show)
		return err
	})
	return image, err
}

// showing runs move while its progress is shown on w.
func showing(w io.Writer, quiet bool, move func(show func(spec.Progress)) error) error {
	if quiet {
		return move(nil)
	}
	shown := progress.New(w)
	err := move(shown.Show)
	shown.End(err == nil)
	return err
}
