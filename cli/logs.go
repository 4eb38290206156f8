package cli

import (
	"bufio"
	"context"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/option"
	"berth/client"
)

type logsVerb struct {
	*program
	follow, timestamps bool
	tail, since, until string
}

func (p *program) logs() *cobra.Command {
	v := &logsVerb{program: p}
	cmd := &cobra.Command{
		Use:   "logs [OPTIONS] CONTAINER",
		Short: "Show what a container wrote",
		Example: `  berth logs web
  berth logs -f -n 20 web
  berth logs --since 10m -t web`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.meantContainer(cmd.Context(), v.show(cmd.Context(), args[0]), args[0])
		},
		ValidArgsFunction: completeAll(1, p.containerNames),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&v.follow, "follow", "f", false, "go on until the container has ended")
	flags.StringVarP(&v.tail, "tail", "n", "all", "only the last so many lines, or all")
	flags.BoolVarP(&v.timestamps, "timestamps", "t", false, "put the time in front of each line")
	flags.StringVar(&v.since, "since", "", "only from that time on: 2006-01-02T15:04:05, or 10m for so long ago")
	flags.StringVar(&v.until, "until", "", "only up to that time")
	flags.Bool("details", false, "taken for docker's sake; there are none")
	_ = flags.MarkHidden("details")
	return cmd
}

func (v *logsVerb) show(ctx context.Context, ref string) error {
	opts, err := v.options(time.Now())
	if err != nil {
		return err
	}
	out, fail := newLogWriter(v.stdout, v.timestamps), newLogWriter(v.stderr, v.timestamps)
	err = v.node().ContainerLogs(ctx, ref, opts, func(line client.LogLine) error {
		to, other := out, fail
		if line.Stderr {
			to, other = fail, out
		}
		if err := other.Flush(); err != nil { // both may be one terminal: keep the order
			return err
		}
		if err := to.write(line); err != nil || !v.follow {
			return err
		}
		return to.Flush()
	})
	for _, w := range []*logWriter{out, fail} {
		if flushErr := w.Flush(); err == nil {
			err = flushErr
		}
	}
	if v.follow && ctx.Err() != nil {
		return exitWith(codeSignal + int(interrupt(ctx))) // that is how one leaves
	}
	return err
}

func (v *logsVerb) options(now time.Time) (opts client.LogOptions, err error) {
	opts = client.LogOptions{Tail: -1, Follow: v.follow}
	if v.tail != "all" && v.tail != "" {
		if opts.Tail, err = strconv.Atoi(v.tail); err != nil {
			return opts, errs.New(errs.Invalid, "--tail %q: expected a number or all", v.tail)
		}
		opts.Tail = max(opts.Tail, -1)
	}
	if opts.Since, err = option.Moment(v.since, now); err != nil {
		return opts, err
	}
	opts.Until, err = option.Moment(v.until, now)
	return opts, err
}

// logWriter writes records of a log as the lines that they were.
type logWriter struct {
	*bufio.Writer
	timestamps bool
	within     bool // the last record was not the end of its line
}

func newLogWriter(w io.Writer, timestamps bool) *logWriter {
	return &logWriter{Writer: bufio.NewWriterSize(w, 64<<10), timestamps: timestamps}
}

func (w *logWriter) write(line client.LogLine) error {
	if w.timestamps && !w.within {
		// As many digits for every line, so that they can be compared.
		if _, err := w.WriteString(line.Time.UTC().Format("2006-01-02T15:04:05.000000000Z07:00") + " "); err != nil {
			return err
		}
	}
	if _, err := w.Write(line.Text); err != nil {
		return err
	}
	w.within = line.Partial
	if line.Partial {
		return nil
	}
	return w.WriteByte('\n')
}
