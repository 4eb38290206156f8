package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/spec"
)

func (p *program) port() *cobra.Command {
	return &cobra.Command{
		Use:   "port CONTAINER [PORT[/PROTOCOL]]",
		Short: "Show where the ports of a container can be reached",
		Example: `  berth port web
  berth port web 80/tcp`,
		Args: arguments(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			mappings, err := p.node().ContainerPorts(cmd.Context(), args[0])
			if err != nil {
				return p.meantContainer(cmd.Context(), err, args[0])
			}
			if len(args) == 1 {
				for _, m := range mappings {
					p.printPort(m, "")
				}
				return nil
			}
			want := args[1]
			if !strings.Contains(want, "/") {
				want += "/tcp"
			}
			found := false
			for _, m := range mappings {
				found = p.printPort(m, want) || found
			}
			if !found {
				return errs.New(errs.NotFound, "port %s of %s is not published; berth port %[2]s lists those that are", want, args[0])
			}
			return nil
		},
		ValidArgsFunction: completeAll(1, p.containersThat(running)),
	}
}

// printPort prints each port of a mapping, or the one that is wanted alone.
func (p *program) printPort(m spec.PortMapping, want string) bool {
	found := false
	for i := range max(1, m.Range) {
		one := m
		one.HostPort, one.Range = m.HostPort+i, 1
		name := fmt.Sprintf("%d/%s", m.ContainerPort+i, protocolOf(m))
		for _, host := range published(one) {
			switch want {
			case "":
				fmt.Fprintf(p.stdout, "%s -> %s\n", name, host)
			case name:
				fmt.Fprintln(p.stdout, host)
				found = true
			}
		}
	}
	return found
}
