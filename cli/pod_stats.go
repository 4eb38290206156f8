package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/cli/terminal"
	"berth/spec"
)

type podStatsVerb struct {
	*program
	listFlags
	containers, noStream bool
}

func (p *program) podStats() *cobra.Command {
	v := &podStatsVerb{program: p}
	cmd := &cobra.Command{
		Use:   "stats [OPTIONS] [POD...]",
		Short: "Show what pods use, as it changes",
		Long: `Show what pods use: those named, or all that are ready. With --containers each
of their containers has a line. On a terminal the table is drawn again each
second; in a pipe a table follows the other.`,
		Example: `  berth pod stats
  berth pod stats --no-stream --containers shop/front
  berth pod stats --no-stream --format json | jq .MemUsage`,
		Args:              arguments(0, -1),
		RunE:              func(cmd *cobra.Command, args []string) error { return v.follow(cmd.Context(), args) },
		ValidArgsFunction: completeAll(-1, p.podNames),
	}
	v.addFormat(cmd.Flags())
	cmd.Flags().BoolVarP(&v.containers, "containers", "c", false, "a line for each container")
	cmd.Flags().BoolVar(&v.noStream, "no-stream", false, "show it once")
	completeFlag(cmd, "format", completeWords("json", "table"))
	return cmd
}

func (v *podStatsVerb) follow(ctx context.Context, refs []string) error {
	screen := &statsScreen{out: v.stdout, live: terminal.Is(v.stdout) && !v.noStream && v.format == ""}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		err := v.once(ctx, screen, refs)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil // that is how one leaves
		}
		if err != nil || v.noStream {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (v *podStatsVerb) once(ctx context.Context, screen *statsScreen, refs []string) error {
	all, err := v.node().PodStats(ctx, refs)
	if err != nil {
		if len(refs) == 1 {
			err = v.meantPod(ctx, err, refs[0])
		}
		return err
	}
	rows := []podStatsRow{}
	for _, s := range all {
		if !v.containers {
			rows = append(rows, newPodStatsRow(s, v.noTrunc))
			continue
		}
		for _, c := range s.Containers {
			rows = append(rows, newPodContainerStatsRow(s, c, v.noTrunc))
		}
	}
	view := podStatsView()
	if v.containers {
		view = podContainerStatsView()
	}
	var frame bytes.Buffer
	if err := write(&frame, &v.listFlags, view, rows); err != nil {
		return err
	}
	return screen.draw(frame.Bytes())
}

// podStatsRow is what a pod, or a container of one, uses.
type podStatsRow struct {
	BlockIO   string
	CPUPerc   string
	Container string
	ID        string
	IOWait    string
	MemPerc   string
	MemUsage  string
	Name      string
	Namespace string
	NetIO     string
	PIDs      string
	Written   string
}

func podStatsView() table.View[podStatsRow] {
	return table.View[podStatsRow]{
		Columns: "{{.ID}}\t{{.Namespace}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
		Titles: map[string]string{
			"ID": "POD ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
			"NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "IOWait": "I/O WAIT",
		},
	}
}

func podContainerStatsView() table.View[podStatsRow] {
	view := podStatsView()
	view.Columns = "{{.ID}}\t{{.Namespace}}\t{{.Name}}\t{{.Container}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.Written}}\t{{.BlockIO}}\t{{.PIDs}}"
	view.Titles["ID"] = "CONTAINER ID"
	return view
}

func newPodStatsRow(s spec.PodStats, full bool) podStatsRow {
	row := usageRow(s.PodUsage)
	row.ID, row.Name, row.Namespace, row.Container = s.ID, s.Name, s.Namespace, "-"
	var received, sent uint64
	for _, n := range s.Network {
		received += n.RxBytes
		sent += n.TxBytes
	}
	if len(s.Network) > 0 {
		row.NetIO = table.Size(int64(received)) + " / " + table.Size(int64(sent)) //nolint:gosec // counts
	}
	var written uint64
	for _, c := range s.Containers {
		if c.Written != nil {
			written += *c.Written
		}
	}
	row.Written = table.Size(int64(written)) //nolint:gosec // a count
	if !full {
		row.ID = table.ID(s.ID)
	}
	return row
}

func newPodContainerStatsRow(s spec.PodStats, c spec.PodContainerStats, full bool) podStatsRow {
	row := usageRow(c.PodUsage)
	row.ID, row.Name, row.Namespace, row.Container = c.ID, s.Name, s.Namespace, c.Name
	if c.Written != nil {
		row.Written = table.Size(int64(*c.Written)) //nolint:gosec // a count
	}
	if !full {
		row.ID = table.ID(c.ID)
	}
	return row
}

func usageRow(u spec.PodUsage) podStatsRow {
	row := podStatsRow{
		CPUPerc: table.Percent(float64(u.CPURate) / 1e7), MemUsage: table.Memory(u.Memory) + " / --", MemPerc: "--", NetIO: "--", Written: "--",
		BlockIO: table.Size(int64(u.Reads)) + " / " + table.Size(int64(u.Writes)), PIDs: fmt.Sprint(u.Processes), //nolint:gosec // counts
		IOWait: time.Duration(u.IOWait).Round(time.Millisecond).String(), //nolint:gosec // as above
	}
	if u.Limit > 0 {
		row.MemUsage = table.Memory(u.Memory) + " / " + table.Memory(u.Limit)
		row.MemPerc = table.Percent(float64(u.Memory) / float64(u.Limit) * 100)
	}
	return row
}
