package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (p *program) top() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top CONTAINER [PS OPTIONS]",
		Short: "List the processes of a container",
		Example: `  berth top web
  berth top web -o pid,rss,args`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := p.node().ContainerTop(cmd.Context(), args[0], args[1:])
			if err != nil {
				return p.meantContainer(cmd.Context(), err, args[0])
			}
			w := tabwriter.NewWriter(p.stdout, 10, 1, 3, ' ', 0)
			fmt.Fprintln(w, strings.Join(list.Titles, "\t"))
			for _, process := range list.Processes {
				fmt.Fprintln(w, strings.Join(process, "\t"))
			}
			return w.Flush()
		},
		ValidArgsFunction: completeAll(1, p.containersThat(running)),
	}
	cmd.Flags().SetInterspersed(false) // what follows the container is for ps
	return cmd
}
