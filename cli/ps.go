package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/table"
	"berth/spec"
)

type psVerb struct {
	*program
	listFlags
	all, latest, size bool
	last              int
}

func (p *program) ps() *cobra.Command {
	v := &psVerb{program: p}
	cmd := &cobra.Command{
		Use:   "ps [OPTIONS]",
		Short: "List containers",
		Long: `List the containers that run, or all with -a.

Filters: id, name, label, status, ancestor, network, volume, health, exited,
before, since, publish, expose.`,
		Example: `  berth ps
  berth ps -a --filter status=exited
  berth ps --format 'table {{.Names}}\t{{.Status}}\t{{.Ports}}'
  berth ps --format json`,
		Args:              arguments(0, 0),
		RunE:              func(cmd *cobra.Command, _ []string) error { return v.list(cmd.Context()) },
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	v.add(cmd, "id", "name", "label", "status", "ancestor", "network", "volume", "health", "exited", "before", "since", "publish", "expose")
	flags := cmd.Flags()
	flags.BoolVarP(&v.all, "all", "a", false, "those that do not run too")
	flags.BoolVarP(&v.latest, "latest", "l", false, "only the newest, whether it runs or not")
	flags.IntVarP(&v.last, "last", "n", -1, "only the so many newest, whether they run or not")
	flags.BoolVarP(&v.size, "size", "s", false, "count the disk that each takes")
	return cmd
}

func (v *psVerb) list(ctx context.Context) error {
	filter, err := v.filter()
	if err != nil {
		return err
	}
	if v.latest {
		v.last = 1
	}
	all := v.all || v.last >= 0 || filter["status"] != nil || filter["exited"] != nil
	containers, err := v.node().ContainerList(ctx, all, filter)
	if err != nil {
		return err
	}
	if v.last >= 0 {
		containers = containers[:min(v.last, len(containers))]
	}
	view := containerView()
	if v.size || strings.Contains(v.format, ".Size") {
		if view.Columns += "\t{{.Size}}"; !v.quiet {
			if err := v.sizes(ctx, containers); err != nil {
				return err
			}
		}
	}
	now := time.Now()
	rows := make([]containerRow, len(containers))
	for i, c := range containers {
		rows[i] = newContainerRow(c, now, v.noTrunc)
	}
	return write(v.stdout, &v.listFlags, view, rows)
}

// sizes counts the disk of each container; one that goes away meanwhile has
// none.
func (v *psVerb) sizes(ctx context.Context, containers []spec.Container) error {
	for i, c := range containers {
		sizes, err := v.node().ContainerSizes(ctx, c.ID)
		if err != nil && errs.KindOf(err) != errs.NotFound {
			return err
		}
		containers[i].Size = &sizes
	}
	return nil
}

// containerRow is a container in ps.
type containerRow struct {
	Command      string
	CreatedAt    string
	ID           string
	Image        string
	Labels       string
	LocalVolumes string
	Mounts       string
	Names        string
	Networks     string
	Platform     string
	Ports        string
	RunningFor   string
	Size         string
	State        string
	Status       string

	labels map[string]string
}

// Label is the value of one label.
func (r containerRow) Label(name string) string { return r.labels[name] }

func containerView() table.View[containerRow] {
	return table.View[containerRow]{
		Columns: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
		Quiet:   "{{.ID}}",
		Titles: map[string]string{
			"ID": "CONTAINER ID", "RunningFor": "CREATED", "CreatedAt": "CREATED AT", "LocalVolumes": "LOCAL VOLUMES",
		},
	}
}

func newContainerRow(c spec.Container, now time.Time, full bool) containerRow {
	row := containerRow{
		ID: c.ID, Names: c.Name, Image: familiarImage(c.Image),
		Command:   strconv.Quote(strings.Join(c.Args, " ")),
		CreatedAt: table.At(c.Created), RunningFor: table.Ago(c.Created, now),
		State: string(c.State.Status), Status: status(c.State, now),
		Ports: ports(c), Labels: joinMap(c.Config.Labels), labels: c.Config.Labels,
		Platform: c.Config.Platform, Size: sizeOf(c.Size),
	}
	var mounts, networks []string
	volumes := 0
	for _, m := range c.Mounts {
		name := m.Host
		if m.Type == "volume" {
			name = m.Name
			volumes++
		}
		if !full {
			name = table.Ellipsis(name, 15)
		}
		mounts = append(mounts, name)
	}
	for _, n := range c.Networks {
		networks = append(networks, n.Network)
	}
	row.Mounts, row.Networks, row.LocalVolumes = strings.Join(mounts, ","), strings.Join(networks, ","), strconv.Itoa(volumes)
	if !full {
		row.ID = table.ID(c.ID)
		row.Command = strconv.Quote(table.Ellipsis(strings.Join(c.Args, " "), 20))
	}
	return row
}

// familiarImage shortens a name, and a digest that stands for an image.
func familiarImage(image string) string {
	if strings.HasPrefix(image, "sha256:") {
		return table.ID(image)
	}
	return familiar(image)
}

// status says in words how a container fares.
func status(s spec.ContainerState, now time.Time) string {
	switch s.Status {
	case spec.Running, spec.Paused:
		text := "Up " + table.Lasting(now.Sub(s.StartedAt))
		if s.Status == spec.Paused {
			return text + " (Paused)"
		}
		switch {
		case s.Health == nil || s.Health.Status == "":
			return text
		case s.Health.Status == "starting":
			return text + " (health: starting)"
		}
		return text + " (" + s.Health.Status + ")"
	case spec.Restarting:
		return fmt.Sprintf("Restarting (%s) %s", exitText(s), table.Ago(s.FinishedAt, now))
	case spec.Stopped:
		text := fmt.Sprintf("Exited (%s) %s", exitText(s), table.Ago(s.FinishedAt, now))
		if s.OOMKilled {
			text += " (out of memory)"
		}
		return text
	case spec.Removing:
		return "Removal In Progress"
	case spec.Created:
		return "Created"
	case spec.Dead:
		return "Dead"
	}
	return string(s.Status)
}

func exitText(s spec.ContainerState) string {
	if s.ExitUnknown {
		return "unknown"
	}
	return strconv.Itoa(s.ExitCode)
}

// ports lists what is published, and what is only exposed.
func ports(c spec.Container) string {
	var out []string
	taken := map[string]bool{}
	for _, m := range c.Ports {
		for i := range max(1, m.Range) {
			taken[fmt.Sprintf("%d/%s", int(m.ContainerPort)+int(i), protocolOf(m))] = true
		}
		for _, host := range published(m) {
			out = append(out, host+"->"+span(m.ContainerPort, m.Range)+"/"+protocolOf(m))
		}
	}
	if running(c.State.Status) {
		for _, port := range c.Exposed {
			if !taken[string(port)] {
				out = append(out, string(port))
			}
		}
	}
	return strings.Join(out, ", ")
}

func sizeOf(sizes *spec.ContainerSizes) string {
	if sizes == nil {
		return "0B"
	}
	return fmt.Sprintf("%s (virtual %s)", table.Size(sizes.RW), table.Size(sizes.RootFS))
}

// joinMap is a map as key=value,… in the order of its keys.
func joinMap(m map[string]string) string { return strings.Join(pairs(m), ",") }

// joinAttributes is joinMap for people to read.
func joinAttributes(m map[string]string) string { return strings.Join(pairs(m), ", ") }

func pairs(m map[string]string) []string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+"="+m[key])
	}
	return out
}
