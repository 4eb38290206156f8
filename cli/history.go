package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/spec"
)

type historyVerb struct {
	*program
	listFlags
	human bool
}

func (p *program) history() *cobra.Command {
	v := &historyVerb{program: p}
	cmd := &cobra.Command{
		Use:   "history [OPTIONS] IMAGE",
		Short: "Show how an image was made, the last step first",
		Example: `  berth history nginx
  berth history --no-trunc --format '{{.Size}}\t{{.CreatedBy}}' nginx`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.meantImage(cmd.Context(), v.show(cmd.Context(), args[0]), args[0])
		},
		ValidArgsFunction: completeAll(1, p.imageNames),
	}
	v.addFormat(cmd.Flags())
	cmd.Flags().BoolVarP(&v.quiet, "quiet", "q", false, "show only the layers' digests")
	cmd.Flags().BoolVarP(&v.human, "human", "H", true, "sizes and times for people")
	return cmd
}

type historyRow struct {
	Comment      string
	CreatedAt    string
	CreatedBy    string
	CreatedSince string
	ID           string
	Size         string
}

func (v *historyVerb) show(ctx context.Context, ref string) error {
	entries, err := v.node().ImageHistory(ctx, ref)
	if err != nil {
		return err
	}
	rows := make([]historyRow, len(entries))
	for i, entry := range entries {
		rows[i] = v.row(entry, time.Now())
	}
	return write(v.stdout, &v.listFlags, table.View[historyRow]{
		Columns: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
		Quiet:   "{{.ID}}",
		Titles:  map[string]string{"ID": "LAYER", "CreatedSince": "CREATED", "CreatedBy": "CREATED BY", "CreatedAt": "CREATED AT"},
	}, rows)
}

func (v *historyVerb) row(entry spec.HistoryEntry, now time.Time) historyRow {
	row := historyRow{
		ID: entry.DiffID, Comment: entry.Comment,
		CreatedBy: strings.ReplaceAll(entry.CreatedBy, "\t", " "),
		CreatedAt: entry.Created.Format(time.RFC3339), CreatedSince: table.Ago(entry.Created, now),
		Size: table.Size(entry.Size),
	}
	if row.ID == "" {
		row.ID = none
	}
	if !v.human {
		row.CreatedSince, row.Size = row.CreatedAt, strconv.FormatInt(entry.Size, 10)
	}
	if !v.noTrunc {
		row.CreatedBy = table.Ellipsis(row.CreatedBy, 45)
		if entry.DiffID != "" {
			row.ID = table.ID(entry.DiffID)
		}
	}
	return row
}
