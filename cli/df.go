package cli

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/spec"
)

func (p *program) systemDf() *cobra.Command {
	var format string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "df [OPTIONS]",
		Short: "Show what takes how much of the disk",
		Long: `Show what takes how much of the disk, counted in blocks as the file system counts.
Layers, files and blobs that several images have count once. The build cache is
layers and blobs, too: its line is a part of the others.

With -v there is a line for each image, container and volume. The unique size of an
image is what removing just that image would give back, its shared size what
other images need too.`,
		Example: `  berth system df
  berth system df -v
  berth system df --format '{{.Type}} {{.Reclaimable}}'
  berth system df -v --format '{{json .store}}'`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			usage, err := p.node().DiskUsage(cmd.Context())
			switch {
			case err != nil:
				return err
			case verbose:
				return writeUsage(p.stdout, format, usage, time.Now())
			}
			return diskView().Write(p.stdout, format, diskRows(usage))
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&format, "format", "", "how to show it: table, table TEMPLATE, json or a Go TEMPLATE; with -v json or a TEMPLATE of all")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show each image, container and volume")
	completeFlag(cmd, "format", completeWords("json", "table"))
	return cmd
}

type diskRow struct {
	Type        string
	TotalCount  int
	Active      int
	Size        string
	Reclaimable string
}

func diskView() table.View[diskRow] {
	return table.View[diskRow]{
		Columns: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
		Titles:  map[string]string{"TotalCount": "TOTAL"},
	}
}

func diskRows(usage spec.DiskUsage) []diskRow {
	row := func(name string, share spec.DiskShare) diskRow {
		out := diskRow{name, share.Total, share.Active, table.Size(share.Size), table.Size(share.Reclaimable)}
		if share.Size > 0 {
			out.Reclaimable += fmt.Sprintf(" (%d%%)", share.Reclaimable*100/share.Size)
		}
		return out
	}
	return []diskRow{
		row("Images", usage.Images), row("Containers", usage.Containers), row("Volumes", usage.Volumes), row("Blobs", usage.Blobs), row("Build cache", usage.BuildCache),
	}
}

// writeUsage shows everything: in sections for people, as one value for
// programs.
func writeUsage(w io.Writer, format string, usage spec.DiskUsage, now time.Time) error {
	switch format {
	case "", "table":
	case "json":
		return writeLine(w, usage)
	default:
		return executeAny(w, format, usage)
	}
	fmt.Fprint(w, "Images space usage:\n\n")
	if err := imageUsageView().Write(w, "", imageUsageRows(usage.ImageList, now)); err != nil {
		return err
	}
	fmt.Fprint(w, "\nContainers space usage:\n\n")
	if err := containerUsageView().Write(w, "", containerUsageRows(usage.ContainerList, now)); err != nil {
		return err
	}
	fmt.Fprint(w, "\nLocal Volumes space usage:\n\n")
	if err := volumeUsageView().Write(w, "", volumeUsageRows(usage.VolumeList)); err != nil {
		return err
	}
	fmt.Fprint(w, "\nDisk space usage:\n\n")
	return partView().Write(w, "", partRows(usage))
}

type imageUsageRow struct {
	Repository, Tag, ID, CreatedSince, Size, SharedSize, UniqueSize string
	Containers                                                      int
}

func imageUsageView() table.View[imageUsageRow] {
	return table.View[imageUsageRow]{
		Columns: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}",
		Titles: map[string]string{
			"ID": "IMAGE ID", "CreatedSince": "CREATED", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
		},
	}
}

func imageUsageRows(images []spec.ImageUsage, now time.Time) []imageUsageRow {
	var rows []imageUsageRow
	for _, image := range images {
		row := imageUsageRow{
			Repository: none, Tag: none, ID: table.ID(image.ID), CreatedSince: table.Ago(image.Created, now), Containers: image.Containers,
			Size: table.Size(image.Shared + image.Own), SharedSize: table.Size(image.Shared), UniqueSize: table.Size(image.Own),
		}
		if len(image.Names) == 0 {
			rows = append(rows, row)
		}
		for _, name := range image.Names {
			named := row
			repository, tag, _ := splitName(name)
			if named.Repository = repository; tag != "" {
				named.Tag = tag
			}
			rows = append(rows, named)
		}
	}
	return rows
}

func containerUsageView() table.View[containerRow] {
	view := containerView()
	view.Columns = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}"
	return view
}

func containerUsageRows(containers []spec.Container, now time.Time) []containerRow {
	var rows []containerRow
	for _, c := range containers {
		row := newContainerRow(c, now, false)
		if c.Size != nil {
			row.Size = table.Size(c.Size.RW)
		}
		rows = append(rows, row)
	}
	return rows
}

type volumeUsageRow struct {
	Name, Size string
	Links      int
}

func volumeUsageView() table.View[volumeUsageRow] {
	return table.View[volumeUsageRow]{
		Columns: "{{.Name}}\t{{.Links}}\t{{.Size}}",
		Titles:  map[string]string{"Name": "VOLUME NAME"},
	}
}

func volumeUsageRows(volumes []spec.Volume) []volumeUsageRow {
	var rows []volumeUsageRow
	for _, v := range volumes {
		row := volumeUsageRow{Name: v.Name, Links: len(v.UsedBy)}
		if v.Size != nil {
			row.Size = table.Size(*v.Size)
		}
		rows = append(rows, row)
	}
	return rows
}

// partRow is one part of all that the node keeps.
type partRow struct{ Part, Count, Size string }

func partView() table.View[partRow] {
	return table.View[partRow]{Columns: "{{.Part}}\t{{.Count}}\t{{.Size}}"}
}

func partRows(usage spec.DiskUsage) []partRow {
	var rows []partRow
	part := func(name string, count, size int64) {
		row := partRow{name, "", table.Size(size)}
		if count >= 0 {
			row.Count = strconv.FormatInt(count, 10)
		}
		rows = append(rows, row)
	}
	part("Files of layers", usage.Store.ObjectCount, usage.Store.Objects)
	part("Trees of layers", -1, usage.Store.Metadata)
	part("Layers as folders", -1, usage.Store.Layers)
	part("Written by containers", int64(usage.Containers.Total), usage.Containers.Size)
	part("Volumes", int64(usage.Volumes.Total), usage.Volumes.Size)
	part("Blobs", int64(usage.Blobs.Total), usage.Blobs.Size)
	part("Records and logs", -1, usage.Other)
	part("Total", -1, usage.Total)
	return rows
}
