package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/spec"
)

func (p *program) info() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "info [OPTIONS]",
		Short: "Describe the node",
		Example: `  berth info
  berth info -f '{{.Runtime}} {{.KeeperPid}}'`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := p.node().Info(cmd.Context())
			switch {
			case err != nil:
				return err
			case format == "json":
				return writeLine(p.stdout, info)
			case format != "":
				return executeAny(p.stdout, format, info)
			}
			return writeInfo(p.stdout, info, time.Now())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "how to show it: json or a Go TEMPLATE")
	completeFlag(cmd, "format", completeWords("json"))
	return cmd
}

func writeInfo(w io.Writer, i spec.Info, now time.Time) error {
	total := 0
	var states []string
	for _, state := range []spec.State{spec.Running, spec.Paused, spec.Restarting, spec.Created, spec.Stopped, spec.Removing, spec.Dead} {
		if n := i.Containers[state]; n > 0 {
			total += n
			states = append(states, fmt.Sprintf("%d %s", n, state))
		}
	}
	containers := fmt.Sprint(total)
	if total > 0 {
		containers += " (" + strings.Join(states, ", ") + ")"
	}
	var runtimes []string
	for _, name := range slices.Sorted(maps.Keys(i.Runtimes)) {
		text := name
		if v := i.Runtimes[name]; v != "" {
			text += " (" + v + ")"
		}
		if name == i.Runtime {
			text += ", used by default"
		}
		runtimes = append(runtimes, text)
	}
	out := tabwriter.NewWriter(w, 0, 1, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%s:\t%s\n", name, value)
		}
	}
	line("Name", i.Name)
	line("Version", i.Version.Version)
	line("Up", table.Lasting(now.Sub(i.Started)))
	line("Containers", containers)
	line("Images", fmt.Sprint(i.Images))
	line("Runtimes", strings.Join(runtimes, "; "))
	line("Snapshotter", i.Snapshotter)
	for _, driver := range i.Storage {
		if driver.Why != "" {
			line("  not "+driver.Name, driver.Why)
		}
	}
	if last := i.Scrubbed; last != nil {
		line("Last scrub", fmt.Sprintf("%s: %d damaged, %d repaired", table.Ago(last.Ended, now), last.Damaged, last.Repaired))
	}
	line("Cgroup", i.Cgroup)
	line("Security", strings.Join(i.Security, ", "))
	line("Kernel", i.Kernel)
	line("System", i.OS)
	line("Architecture", i.Architecture)
	line("CPUs", fmt.Sprint(i.CPUs))
	line("Memory", table.Memory(i.Memory))
	line("Root folder", i.Root)
	line("State folder", i.State)
	line("Socket", i.Socket)
	line("Registry hosts", i.RegistryHosts)
	line("Processes", fmt.Sprintf("node %d, keeper %d", i.NodePid, i.KeeperPid))
	line("Id", i.ID)
	for _, warning := range i.Warnings {
		line("Warning", warning)
	}
	return out.Flush()
}
