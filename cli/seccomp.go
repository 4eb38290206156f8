package cli

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/spec"
)

// seccomp holds the verbs about what was recorded of system calls.
func (p *program) seccomp() *cobra.Command {
	return p.management("seccomp", "Work with recorded seccomp profiles: ls show",
		`  berth seccomp ls
  berth seccomp show shop/front/app > /var/lib/kubelet/seccomp/app.json`,
		p.seccompLs(), p.seccompShow())
}

func (p *program) seccompLs() *cobra.Command {
	f := &listFlags{}
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List recorded seccomp profiles",
		Long: `List the seccomp profiles that were recorded. The annotation
seccomp-notifier-action.berth.io=record on a pod has what its containers use
recorded.`,
		Example: `  berth seccomp ls
  berth seccomp ls --format '{{.Name}} {{.Syscalls}}'`,
		Args:              arguments(0, 0),
		RunE:              func(cmd *cobra.Command, _ []string) error { return p.listProfiles(cmd.Context(), f) },
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd)
	return cmd
}

func (p *program) listProfiles(ctx context.Context, f *listFlags) error {
	filter, err := f.filter()
	if err != nil {
		return err
	}
	if err := onlyKeys(filter); err != nil {
		return err
	}
	all, err := p.node().SeccompList(ctx)
	if err != nil {
		return err
	}
	rows := make([]profileRow, len(all))
	for i, one := range all {
		rows[i] = newProfileRow(one)
	}
	return write(p.stdout, f, profileView(), rows)
}

// profileRow is a recorded profile in a list.
type profileRow struct {
	Calls    string
	From     string
	Name     string
	Syscalls string
}

func newProfileRow(one spec.SeccompProfile) profileRow {
	return profileRow{
		Calls: strconv.Itoa(len(one.Calls)), From: strings.Join(one.From, ","), Name: one.Name, Syscalls: strings.Join(one.Calls, ","),
	}
}

func profileView() table.View[profileRow] {
	return table.View[profileRow]{
		Columns: "{{.Name}}\t{{.Calls}}\t{{.From}}",
		Quiet:   "{{.Name}}",
		Titles:  map[string]string{"From": "RECORDED FROM"},
	}
}

func (p *program) seccompShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show PROFILE",
		Short: "Print a recorded seccomp profile",
		Long: `Print a recorded seccomp profile, by its name or by the container that it was
recorded of (namespace/pod/container), as Kubernetes takes it for a localhost
profile.`,
		Example: `  berth seccomp show shop/front/app > /var/lib/kubelet/seccomp/app.json`,
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			one, err := p.node().SeccompGet(cmd.Context(), args[0])
			if err != nil {
				return meant(cmd.Context(), err, args[0], "seccomp ls", p.profileNames)
			}
			out := json.NewEncoder(p.stdout)
			out.SetIndent("", "  ")
			return out.Encode(one.Profile)
		},
		ValidArgsFunction: completeAll(1, p.profileNames),
	}
}

func (p *program) profileNames(ctx context.Context) ([]string, error) {
	all, err := p.node().SeccompList(ctx)
	names := make([]string, len(all))
	for i, one := range all {
		names[i] = one.Name
	}
	return names, err
}
