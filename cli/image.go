package cli

import (
	"context"

	"github.com/spf13/cobra"

	"berth/spec"
)

// image holds the verbs about images, for those who look for them there.
func (p *program) image() *cobra.Command {
	return p.management("image", "Work with images: ls build pull push rm prune …",
		`  berth image ls
  berth image prune -a -f`,
		as("ls", p.images(), "list"), p.build(), p.pull(), p.push(), p.tag(), as("rm", p.rmi(), "remove"), p.history(),
		p.load(), p.save(), p.inspectOf("image", p.imageNames), p.imagePrune())
}

func (p *program) imagePrune() *cobra.Command {
	return p.prune(pruneVerb{
		short: "Remove the images that are not used",
		what:  "all images without a name", whatAll: "all images that no container uses",
		example: "  berth image prune\n  berth image prune -a -f --filter until=240h",
		act: func(ctx context.Context, filter spec.Filter, all bool) (spec.Pruned, error) {
			return p.node().ImagePrune(ctx, all, filter)
		},
	})
}
