package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/option"
	"berth/cli/table"
	"berth/spec"
)

func (p *program) volume() *cobra.Command {
	return p.management("volume", "Work with volumes: ls create inspect rm prune",
		`  berth volume create data
  berth run --rm -v data:/data alpine sh -c 'date > /data/now'
  berth volume ls`,
		p.volumeLs(), p.volumeCreate(), p.inspectOf("volume", p.volumeNames), p.volumeRm(), p.volumePrune())
}

func (p *program) volumeLs() *cobra.Command {
	f := &listFlags{}
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Long:    "List volumes. Filters: name, driver, label, dangling.",
		Example: `  berth volume ls
  berth volume ls -q --filter dangling=true`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter()
			if err != nil {
				return err
			}
			volumes, err := p.node().VolumeList(cmd.Context(), filter)
			if err != nil {
				return err
			}
			rows := make([]volumeRow, len(volumes))
			for i, v := range volumes {
				rows[i] = newVolumeRow(v)
			}
			return write(p.stdout, f, volumeView(), rows)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd, "name", "driver", "label", "dangling")
	return cmd
}

type volumeRow struct {
	CreatedAt  string
	Driver     string
	Labels     string
	Links      string
	Mountpoint string
	Name       string
	Scope      string
	Size       string

	labels map[string]string
}

// Label is the value of one label.
func (r volumeRow) Label(name string) string { return r.labels[name] }

func volumeView() table.View[volumeRow] {
	return table.View[volumeRow]{
		Columns: "{{.Driver}}\t{{.Name}}",
		Quiet:   "{{.Name}}",
		Titles:  map[string]string{"Name": "VOLUME NAME", "CreatedAt": "CREATED AT"},
	}
}

func newVolumeRow(v spec.Volume) volumeRow {
	row := volumeRow{
		Name: v.Name, Driver: v.Driver, Mountpoint: v.Path, Scope: "local", Size: "N/A",
		CreatedAt: table.At(v.Created), Links: strconv.Itoa(len(v.UsedBy)),
		Labels: joinMap(v.Labels), labels: v.Labels,
	}
	if v.Size != nil {
		row.Size = table.Size(*v.Size)
	}
	return row
}

func (p *program) volumeCreate() *cobra.Command {
	var config spec.VolumeConfig
	var labels, options []string
	var name string
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] [NAME]",
		Short: "Make a volume",
		Example: `  berth volume create data
  berth volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=64m scratch`,
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			config.Name = strings.Join(append(args, name)[:1], "")
			if config.Labels, err = option.Map(labels); err != nil {
				return err
			}
			if config.Options, err = option.Map(options); err != nil {
				return err
			}
			made, err := p.node().VolumeCreate(cmd.Context(), config)
			if err != nil {
				return err
			}
			fmt.Fprintln(p.stdout, made.Name)
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVarP(&config.Driver, "driver", "d", "local", "local is all there is")
	flags.StringArrayVar(&labels, "label", nil, "set a label: key=value")
	flags.StringArrayVarP(&options, "opt", "o", nil, "type, device or o, as mount(8) takes them")
	flags.StringVar(&name, "name", "", "the same as the argument")
	_ = flags.MarkHidden("name")
	return cmd
}

func (p *program) volumeRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm [OPTIONS] VOLUME...",
		Aliases: []string{"remove"},
		Short:   "Remove volumes that no container uses, and what is in them",
		Example: "  berth volume rm data",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.each(cmd.Context(), "volume rm", args, func(ctx context.Context, ref string) error {
				return p.meantVolume(ctx, p.node().VolumeRemove(ctx, ref, force), ref)
			})
		},
		ValidArgsFunction: completeAll(-1, p.volumeNames),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "those that are not there are no failure")
	return cmd
}

func (p *program) volumePrune() *cobra.Command {
	return p.prune(pruneVerb{
		short: "Remove the volumes that no container uses",
		what:  "all anonymous volumes that no container uses", whatAll: "all volumes that no container uses, named ones too",
		example: "  berth volume prune\n  berth volume prune -a -f",
		act: func(ctx context.Context, filter spec.Filter, all bool) (spec.Pruned, error) {
			return p.node().VolumePrune(ctx, all, filter)
		},
	})
}
