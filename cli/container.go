package cli

import (
	"context"

	"github.com/spf13/cobra"

	"berth/spec"
)

// container holds the verbs about containers, for those who look for them
// there.
func (p *program) container() *cobra.Command {
	return p.management("container", "Work with containers: ls run rm prune …",
		`  berth container ls -a
  berth container prune -f`,
		as("ls", p.ps(), "list", "ps"), p.run(), p.create(), p.start(), p.stop(), p.restart(), p.kill(), p.pause(), p.unpause(),
		p.wait(), p.rename(), p.update(), as("rm", p.rm(), "remove"), p.logs(), p.inspectOf("container", p.containerNames),
		p.top(), p.stats(), p.port(), p.diff(), p.exec(), p.attach(), p.cp(), p.export(), p.commit(), p.containerPrune())
}

func (p *program) containerPrune() *cobra.Command {
	return p.prune(pruneVerb{
		short: "Remove the containers that do not run", what: "all containers that do not run",
		example: "  berth container prune\n  berth container prune -f --filter until=24h",
		act: func(ctx context.Context, filter spec.Filter, _ bool) (spec.Pruned, error) {
			return p.node().ContainerPrune(ctx, filter)
		},
	})
}
