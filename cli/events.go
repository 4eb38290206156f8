package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/option"
	"berth/client"
	"berth/spec"
)

type eventsVerb struct {
	*program
	since, until, format string
	filters              []string
}

func (p *program) events() *cobra.Command {
	v := &eventsVerb{program: p}
	cmd := &cobra.Command{
		Use:   "events [OPTIONS]",
		Short: "Show what happens on the node, as it happens",
		Long: `Show what happens on the node, as it happens, until interrupted or until the
time of --until. Filters: type, event, container, pod, image, network, volume,
label.`,
		Example: `  berth events
  berth events --filter pod=shop/front
  berth events --since 1h --until 0s --filter event=die
  berth events --format json | jq .action`,
		Args:              arguments(0, 0),
		RunE:              func(cmd *cobra.Command, _ []string) error { return v.follow(cmd.Context()) },
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVar(&v.since, "since", "", "also what happened from that time on: 2006-01-02T15:04:05, or 10m for so long ago")
	flags.StringVar(&v.until, "until", "", "end at that time")
	flags.StringArrayVarP(&v.filters, "filter", "f", nil, "show only what fits: key=value")
	flags.StringVar(&v.format, "format", "", "how to show it: json or a Go TEMPLATE")
	completeFlag(cmd, "format", completeWords("json"))
	completeFlag(cmd, "filter", cobra.FixedCompletions(
		[]string{"type=", "event=", "container=", "pod=", "image=", "network=", "volume=", "label="},
		cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (v *eventsVerb) follow(ctx context.Context) error {
	var opts client.EventOptions
	var err error
	now := time.Now()
	if opts.Since, err = option.Moment(v.since, now); err != nil {
		return err
	}
	if opts.Until, err = option.Moment(v.until, now); err != nil {
		return err
	}
	if opts.Filter, err = option.Filter(v.filters); err != nil {
		return err
	}
	err = v.node().Events(ctx, opts, func(e spec.Event) error { return v.write(v.stdout, e) })
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // that is how one leaves
	}
	return err
}

func (v *eventsVerb) write(w io.Writer, e spec.Event) error {
	switch v.format {
	case "":
		_, err := fmt.Fprintln(w, eventLine(e))
		return err
	case "json":
		return writeLine(w, e)
	}
	return executeAny(w, v.format, e)
}

// eventLine is an event as docker's users know it.
func eventLine(e spec.Event) string {
	line := fmt.Sprintf("%s %s %s %s", e.Time.Local().Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.ID)
	if len(e.Attributes) > 0 {
		line += " (" + joinAttributes(e.Attributes) + ")"
	}
	return line
}
