package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"berth/spec"
)

func (p *program) commit() *cobra.Command {
	var request spec.CommitRequest
	var pause bool
	cmd := &cobra.Command{
		Use:   "commit [OPTIONS] CONTAINER [NAME[:TAG]]",
		Short: "Make an image of a container as it is",
		Long: `Make an image of a container as it is. What the container changed becomes a layer
on its image; volumes are left out.

A running container is paused while its changes are read, so that they are of one
moment: about a second for every 100 MB that it changed, and some milliseconds
where that is little. One that does not run is not paused. With --pause=false it
runs on, and files that it writes meanwhile may be half written in the image.

The image can be used at once. It is on disk for good some moments later; with
--sync the command waits for that.`,
		Example: `  berth commit web web:patched
  berth commit -c 'CMD ["serve"]' -c 'ENV MODE=fast' -m 'tuned' web web:fast`,
		Args: arguments(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				request.Reference = args[1]
			}
			request.NoPause = !pause
			image, err := p.node().ContainerCommit(cmd.Context(), args[0], request)
			if err != nil {
				return p.meantContainer(cmd.Context(), err, args[0])
			}
			fmt.Fprintln(p.stdout, image.ID)
			return nil
		},
		ValidArgsFunction: completeInTurn(p.containerNames, p.imageNames),
	}
	flags := cmd.Flags()
	flags.StringVarP(&request.Author, "author", "a", "", "who made it, as in \"Ann Example <ann@example.com>\"")
	flags.StringVarP(&request.Message, "message", "m", "", "what for")
	flags.StringArrayVarP(&request.Changes, "change", "c", nil, "line of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR …")
	flags.BoolVarP(&pause, "pause", "p", true, "pause the container while its changes are read")
	flags.BoolVar(&request.Sync, "sync", false, "wait until the image would survive a loss of power")
	return cmd
}
