package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/spec"
)

func (p *program) podLs() *cobra.Command {
	f := &listFlags{}
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List pods",
		Long: `List pods, newest first. Filters: id, name, namespace, uid, state (ready or
notready), label.`,
		Example: `  berth pod ls
  berth pod ls --filter namespace=kube-system --filter state=ready
  berth pod ls --format 'table {{.Namespace}}\t{{.Name}}\t{{.IP}}'`,
		Args:              arguments(0, 0),
		RunE:              func(cmd *cobra.Command, _ []string) error { return p.listPods(cmd.Context(), f) },
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd, "id", "name", "namespace", "uid", "state", "label")
	return cmd
}

func (p *program) listPods(ctx context.Context, f *listFlags) error {
	filter, err := f.filter()
	if err != nil {
		return err
	}
	pods, err := p.node().PodList(ctx, filter)
	if err != nil {
		return err
	}
	var containers []spec.PodContainer
	if !f.quiet && len(pods) > 0 {
		if containers, err = p.node().PodContainers(ctx, ""); err != nil {
			return err
		}
	}
	now := time.Now()
	rows := make([]podRow, len(pods))
	for i, pod := range pods {
		rows[i] = newPodRow(pod, containers, now, f.noTrunc)
	}
	return write(p.stdout, f, podView(), rows)
}

// podRow is a pod in a list.
type podRow struct {
	Attempt    string
	Containers string
	CreatedAt  string
	ID         string
	IP         string
	IPs        string
	Labels     string
	Name       string
	Namespace  string
	Ports      string
	RunningFor string
	Runtime    string
	State      string
	UID        string

	labels map[string]string
}

// Label is the value of one label.
func (r podRow) Label(name string) string { return r.labels[name] }

func podView() table.View[podRow] {
	return table.View[podRow]{
		Columns: "{{.ID}}\t{{.Namespace}}\t{{.Name}}\t{{.State}}\t{{.Containers}}\t{{.RunningFor}}\t{{.IP}}",
		Quiet:   "{{.ID}}",
		Titles:  map[string]string{"ID": "POD ID", "RunningFor": "CREATED", "CreatedAt": "CREATED AT"},
	}
}

// newPodRow says of the containers how many run, and how many there are.
func newPodRow(p spec.Pod, containers []spec.PodContainer, now time.Time, full bool) podRow {
	c := &p.Config
	row := podRow{
		Attempt: strconv.FormatUint(uint64(c.Attempt), 10), CreatedAt: table.At(p.Created), ID: p.ID, IPs: strings.Join(p.IPs, ","),
		Labels: joinMap(c.Labels), Name: c.Name, Namespace: c.Namespace, RunningFor: table.Ago(p.Created, now), Runtime: p.Runtime,
		State: podState(p.State), UID: c.UID, labels: c.Labels,
	}
	if len(p.IPs) > 0 {
		row.IP = p.IPs[0]
	} else if c.Security.Namespaces.Network == spec.NamespaceNode {
		row.IP = "host"
	}
	var ports []string
	for _, port := range c.Ports {
		if port.HostPort != 0 {
			ports = append(ports, published(spec.PortMapping{HostIP: port.HostIP, HostPort: uint16(port.HostPort)})[0]+ //nolint:gosec // a port
				"->"+fmt.Sprintf("%d/%s", port.ContainerPort, cmp.Or(port.Protocol, "tcp")))
		}
	}
	row.Ports = strings.Join(ports, ", ")
	run, all := 0, 0
	for _, one := range containers {
		if one.Pod == p.ID {
			all++
			if running(one.State) {
				run++
			}
		}
	}
	row.Containers = fmt.Sprintf("%d/%d", run, all)
	if !full {
		row.ID = table.ID(p.ID)
	}
	return row
}

func podState(s spec.PodState) string {
	if s == spec.PodReady {
		return "Ready"
	}
	return "NotReady"
}

type podPsVerb struct {
	*program
	listFlags
	all bool
}

func (p *program) podPs() *cobra.Command {
	v := &podPsVerb{program: p}
	cmd := &cobra.Command{
		Use:   "ps [OPTIONS] [POD...]",
		Short: "List the containers of pods",
		Long: `List the containers that run in pods, or in those named; all of them with -a.
Filters: id, name, state, label.`,
		Example: `  berth pod ps
  berth pod ps -a shop/front
  berth pod ps --format '{{.Pod}} {{.Name}} {{.Attempt}}'`,
		Args: arguments(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.list(cmd.Context(), args)
		},
		ValidArgsFunction: completeAll(-1, p.podNames),
	}
	v.add(cmd, "id", "name", "state", "label")
	cmd.Flags().BoolVarP(&v.all, "all", "a", false, "those that do not run too")
	return cmd
}

func (v *podPsVerb) list(ctx context.Context, refs []string) error {
	filter, err := v.filter()
	if err != nil {
		return err
	}
	if err := onlyKeys(filter, "id", "name", "state", "label"); err != nil {
		return err
	}
	if len(refs) == 0 {
		refs = []string{""}
	}
	var containers []spec.PodContainer
	for _, ref := range refs {
		some, err := v.node().PodContainers(ctx, ref)
		if err != nil {
			return v.meantPod(ctx, err, ref)
		}
		containers = append(containers, some...)
	}
	pods, err := v.node().PodList(ctx, nil)
	if err != nil {
		return err
	}
	of := map[string]spec.Pod{}
	for _, pod := range pods {
		of[pod.ID] = pod
	}
	now := time.Now()
	rows := []podContainerRow{}
	for _, c := range containers {
		if (v.all || filter["state"] != nil || running(c.State)) && fitsPodContainer(c, filter) {
			rows = append(rows, newPodContainerRow(c, of[c.Pod], now, v.noTrunc))
		}
	}
	return write(v.stdout, &v.listFlags, podContainerView(), rows)
}

func fitsPodContainer(c spec.PodContainer, filter spec.Filter) bool {
	for key, values := range filter {
		fits := slices.ContainsFunc(values, func(value string) bool {
			switch key {
			case "id":
				return strings.HasPrefix(c.ID, value)
			case "name":
				return strings.Contains(c.Config.Name, value)
			case "state":
				return string(c.State) == value
			default:
				name, wanted, valued := strings.Cut(value, "=")
				is, has := c.Config.Labels[name]
				return has && (!valued || is == wanted)
			}
		})
		if !fits {
			return false
		}
	}
	return true
}

// podContainerRow is a container of a pod in a list.
type podContainerRow struct {
	Attempt    string
	CreatedAt  string
	ID         string
	Image      string
	Labels     string
	Name       string
	Namespace  string
	PID        string
	Pod        string
	PodID      string
	RunningFor string
	State      string
	Status     string

	labels map[string]string
}

// Label is the value of one label.
func (r podContainerRow) Label(name string) string { return r.labels[name] }

func podContainerView() table.View[podContainerRow] {
	return table.View[podContainerRow]{
		Columns: "{{.ID}}\t{{.Pod}}\t{{.Name}}\t{{.Image}}\t{{.RunningFor}}\t{{.Status}}\t{{.Attempt}}",
		Quiet:   "{{.ID}}",
		Titles:  map[string]string{"ID": "CONTAINER ID", "PodID": "POD ID", "RunningFor": "CREATED", "CreatedAt": "CREATED AT"},
	}
}

func newPodContainerRow(c spec.PodContainer, p spec.Pod, now time.Time, full bool) podContainerRow {
	image := cmp.Or(c.Config.UserImage, c.Config.Image, c.ImageRef)
	row := podContainerRow{
		Attempt: strconv.FormatUint(uint64(c.Config.Attempt), 10), CreatedAt: table.At(c.Created), ID: c.ID, Image: image,
		Labels: joinMap(c.Config.Labels), Name: c.Config.Name, Namespace: p.Config.Namespace,
		Pod: p.Config.Namespace + "/" + p.Config.Name, PodID: c.Pod, RunningFor: table.Ago(c.Created, now),
		State: string(c.State), Status: podContainerStatus(c, now), labels: c.Config.Labels,
	}
	if c.Pid != 0 {
		row.PID = strconv.Itoa(c.Pid)
	}
	if !full {
		row.ID, row.PodID, row.Image = table.ID(c.ID), table.ID(c.Pod), familiarImage(image)
	}
	return row
}

func podContainerStatus(c spec.PodContainer, now time.Time) string {
	text := status(spec.ContainerState{Status: c.State, StartedAt: c.Started, FinishedAt: c.Finished, ExitCode: c.ExitCode}, now)
	if c.State == spec.Stopped && c.Reason != "" && c.Reason != "Completed" && c.Reason != "Error" {
		text += " (" + c.Reason + ")"
	}
	return text
}
