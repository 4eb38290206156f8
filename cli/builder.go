package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/option"
	"berth/cli/table"
	"berth/spec"
)

func (p *program) builder() *cobra.Command {
	return p.management("builder", "Work with the builder of images: build du prune status stop",
		`  berth builder du
  berth builder prune -f
  BUILDKIT_HOST=$(berth builder status -f '{{.socket}}') buildctl …`,
		p.build(), p.builderDu(), p.builderPrune(), p.builderStatus(), p.builderStop())
}

func (p *program) builderDu() *cobra.Command {
	f := &listFlags{}
	cmd := &cobra.Command{
		Use:   "du [OPTIONS]",
		Short: "List what builds have left to make the next ones fast",
		Long: `List what builds have left to make the next ones fast. Filters are those of
BuildKit: type=exec.cachemount, inuse=true, id=…, description~=….`,
		Example: `  berth builder du
  berth builder du --filter type=exec.cachemount --format '{{.ID}} {{.Size}}'`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := p.node().BuildCache(cmd.Context(), cacheFilters(f.filters))
			if err != nil {
				return err
			}
			rows := make([]cacheRow, len(cache.Entries))
			for i, entry := range cache.Entries {
				rows[i] = newCacheRow(entry, time.Now(), f.noTrunc)
			}
			if err := write(p.stdout, f, cacheView(), rows); err != nil || f.quiet || f.format != "" {
				return err
			}
			fmt.Fprintf(p.stdout, "Reclaimable: %s\nTotal: %s\n", table.Size(cache.Reclaimable), table.Size(cache.Size))
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd, "type", "inuse", "id", "description", "private", "shared", "mutable", "parents")
	return cmd
}

// cacheFilters are filters in BuildKit's words, which has == for equal.
func cacheFilters(filters []string) []string {
	var out []string
	for _, filter := range filters {
		at := strings.IndexAny(filter, "=~!")
		if at > 0 && filter[at] == '=' && !strings.HasPrefix(filter[at:], "==") {
			filter = filter[:at] + "=" + filter[at:]
		}
		out = append(out, filter)
	}
	return out
}

type cacheRow struct {
	ID, Type, Description, Parents       string
	Size, CreatedSince, LastUsed, Shared string
	UsageCount                           int
	Reclaimable                          string
}

func cacheView() table.View[cacheRow] {
	return table.View[cacheRow]{
		Columns: "{{.ID}}\t{{.Type}}\t{{.Size}}\t{{.Reclaimable}}\t{{.LastUsed}}\t{{.Description}}",
		Quiet:   "{{.ID}}",
		Titles:  map[string]string{"CreatedSince": "CREATED", "LastUsed": "LAST USED", "UsageCount": "USES"},
	}
}

func newCacheRow(e spec.BuildCacheEntry, now time.Time, full bool) cacheRow {
	yes := func(is bool) string {
		if is {
			return "yes"
		}
		return "no"
	}
	row := cacheRow{
		ID: e.ID, Type: e.Type, Description: e.Description, Parents: strings.Join(e.Parents, ","), Size: table.Size(e.Size),
		CreatedSince: table.Ago(e.Created, now), Shared: yes(e.Shared), UsageCount: e.UsageCount, Reclaimable: yes(!e.InUse),
	}
	if !e.LastUsed.IsZero() {
		row.LastUsed = table.Ago(e.LastUsed, now)
	}
	if !full {
		row.ID, row.Description = table.ID(e.ID), table.Ellipsis(e.Description, 60)
	}
	return row
}

func (p *program) builderPrune() *cobra.Command {
	var request spec.BuildCachePrune
	var force bool
	var keep string
	var filters []string
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove what builds have left",
		Long: `Remove what builds have left and no build that runs needs. Filters: until=24h (not
used for so long), and those of berth builder du.`,
		Example: `  berth builder prune -f
  berth builder prune -f --filter until=48h
  berth builder prune -af --max-used-space 5GB`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if request.Keep, err = keptBytes(keep); err != nil {
				return err
			}
			if request.Unused, request.Filter, err = untilFilter(filters); err != nil {
				return err
			}
			what := "what builds have left and nothing uses"
			if request.All {
				what = "all that builds have left"
			}
			if err := p.confirm(force, "This removes "+what+"."); err != nil {
				return err
			}
			return p.pruneCache(cmd.Context(), request)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&request.All, "all", "a", false, "also BuildKit's own images and what is shared with others")
	flags.BoolVarP(&force, "force", "f", false, "do not ask first")
	flags.StringArrayVar(&filters, "filter", nil, "remove only what fits: until=24h, type=exec.cachemount")
	flags.StringVar(&keep, "max-used-space", "", "leave so much of the cache, such as 5GB")
	flags.StringVar(&keep, "keep-storage", "", "the same")
	flags.Lookup("keep-storage").Hidden = true
	return cmd
}

func (p *program) pruneCache(ctx context.Context, request spec.BuildCachePrune) error {
	pruned, err := p.node().BuildCachePrune(ctx, request)
	if err != nil {
		return err
	}
	for _, entry := range pruned.Entries {
		fmt.Fprintln(p.stdout, entry.ID)
	}
	fmt.Fprintf(p.stdout, "Reclaimed space: %s\n", table.Size(pruned.Size))
	return nil
}

func keptBytes(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	return option.Bytes(text)
}

// untilFilter takes until=24h out of filters: it is not BuildKit's.
func untilFilter(filters []string) (seconds int, others []string, err error) {
	for _, filter := range filters {
		text, is := strings.CutPrefix(filter, "until=")
		if !is {
			others = append(others, filter)
			continue
		}
		age, err := time.ParseDuration(text)
		if err != nil || age < time.Second {
			return 0, nil, errs.New(errs.Invalid, "filter %q: expected a duration such as until=24h", filter)
		}
		seconds = int(age.Seconds())
	}
	return seconds, cacheFilters(others), nil
}

func (p *program) builderStatus() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status [OPTIONS]",
		Short: "Say whether the builder runs, and where it is",
		Example: `  berth builder status
  berth builder status -f '{{.running}}'`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := p.node().BuilderGet(cmd.Context())
			switch {
			case err != nil:
				return err
			case format == "json":
				return writeLine(p.stdout, b)
			case format != "":
				return executeAny(p.stdout, format, b)
			}
			p.printBuilder(b)
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "how to show it: json or a Go TEMPLATE")
	completeFlag(cmd, "format", completeWords("json"))
	return cmd
}

func (p *program) printBuilder(b spec.Builder) {
	line := func(name, value string) { fmt.Fprintf(p.stdout, "%-9s %s\n", name+":", value) }
	idle := "never stopped for being idle"
	if b.Idle >= 0 {
		idle = "stopped when idle for " + (time.Duration(b.Idle) * time.Second).String()
	}
	if b.Running {
		line("Status", "runs, "+idle)
		line("Pid", fmt.Sprint(b.Pid))
		line("Since", table.At(b.Started))
		line("Clients", fmt.Sprint(b.Connections))
	} else {
		line("Status", "starts with the next build, "+idle)
	}
	line("Socket", b.Socket)
	line("Program", b.Server)
	line("Log", b.Log)
}

func (p *program) builderStop() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "stop [OPTIONS]",
		Short:   "Stop the builder until the next build",
		Example: "  berth builder stop",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.node().BuilderStop(cmd.Context(), force)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if somebody builds")
	return cmd
}
