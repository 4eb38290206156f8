package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/spec"
)

type imagesVerb struct {
	*program
	listFlags
	all, digests bool
}

func (p *program) images() *cobra.Command {
	v := &imagesVerb{program: p}
	cmd := &cobra.Command{
		Use:   "images [OPTIONS] [NAME[:TAG]]",
		Short: "List images",
		Long: `List images, newest first. An image with several names has a line for each.

Filters: reference, label, dangling, before, since, until.`,
		Example: `  berth images
  berth images alpine
  berth images --digests --filter dangling=true
  berth images --format '{{.Repository}}:{{.Tag}} {{.Size}}'`,
		Args:              arguments(0, 1),
		RunE:              func(cmd *cobra.Command, args []string) error { return v.list(cmd.Context(), args) },
		ValidArgsFunction: completeAll(1, p.imageNames),
	}
	v.add(cmd, "reference", "label", "dangling", "before", "since", "until")
	cmd.Flags().BoolVarP(&v.all, "all", "a", false, "taken for docker's sake; there are no hidden images")
	_ = cmd.Flags().MarkHidden("all")
	cmd.Flags().BoolVar(&v.digests, "digests", false, "show the digests too")
	return cmd
}

func (v *imagesVerb) list(ctx context.Context, args []string) error {
	filter, err := v.filter()
	if err != nil {
		return err
	}
	if len(args) == 1 {
		if filter == nil {
			filter = spec.Filter{}
		}
		filter["reference"] = append(filter["reference"], args[0])
	}
	images, err := v.node().ImageList(ctx, filter)
	if err != nil {
		return err
	}
	rows := imageRows(images, time.Now(), v.noTrunc)
	if len(args) == 1 {
		rows = slices.DeleteFunc(rows, func(r imageRow) bool { return !r.named(args[0]) })
	}
	if v.quiet { // an image once, however many names it has
		rows = slices.CompactFunc(rows, func(a, b imageRow) bool { return a.ID == b.ID })
	}
	return write(v.stdout, &v.listFlags, imageView(v.digests), rows)
}

// imageRow is an image in images, under one of its names.
type imageRow struct {
	Containers   int
	CreatedAt    string
	CreatedSince string
	Digest       string
	ID           string
	Platform     string
	Repository   string
	SharedSize   string
	Size         string
	Tag          string
	UniqueSize   string
	VirtualSize  string
	BlobSize     string
}

// named says whether the row is what a user meant by name[:tag].
func (r imageRow) named(name string) bool {
	if strings.ContainsAny(name, "*?[") {
		return true // a pattern, which the node knows how to fit
	}
	repository, tag, _ := splitName(name)
	return r.Repository == repository && (tag == "" || r.Tag == tag) || strings.HasPrefix(r.ID, name)
}

const none = "<none>"

func imageView(digests bool) table.View[imageRow] {
	columns := "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	if digests {
		columns = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	}
	return table.View[imageRow]{
		Columns: columns,
		Quiet:   "{{.ID}}",
		Titles:  map[string]string{"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "BlobSize": "COMPRESSED"},
	}
}

func imageRows(images []spec.Image, now time.Time, full bool) []imageRow {
	var rows []imageRow
	for _, image := range images {
		row := imageRow{
			ID: image.ID, Digest: image.Target, Platform: image.Platform, Containers: image.Containers,
			CreatedAt: table.At(image.Created), CreatedSince: table.Ago(image.Created, now),
			Size: table.Size(image.Size), VirtualSize: table.Size(image.Size), BlobSize: table.Size(image.Blobs),
			SharedSize: "N/A", UniqueSize: "N/A", Repository: none, Tag: none,
		}
		if !full {
			row.ID = table.ID(image.ID)
		}
		if row.Digest == "" {
			row.Digest = none
		}
		if len(image.Names) == 0 {
			rows = append(rows, row)
		}
		for _, name := range image.Names {
			repository, tag, digest := splitName(name)
			named := row
			named.Repository = repository
			if tag != "" {
				named.Tag = tag
			}
			if digest != "" {
				named.Digest = digest
			}
			rows = append(rows, named)
		}
	}
	return rows
}
