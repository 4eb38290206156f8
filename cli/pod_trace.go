package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/terminal"
	"berth/spec"
)

type podTraceVerb struct {
	*program
	format string
	all    bool
}

func (p *program) podTrace() *cobra.Command {
	v := &podTraceVerb{program: p}
	cmd := &cobra.Command{
		Use:   "trace [OPTIONS] POD",
		Short: "Show step by step how a pod was started",
		Long: `Show step by step how a pod was started, and what took how long: on a terminal
as a waterfall, else a line for each step. With --all also what was done for the
pod since. Of a pod that is gone, or that could not be started, the steps are
known for a short while.`,
		Example: `  berth pod trace shop/front
  berth pod trace --all 3f2a
  berth pod trace --format json front | jq 'max_by(.duration)'`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.meantPod(cmd.Context(), v.show(cmd.Context(), args[0]), args[0])
		},
		ValidArgsFunction: completeAll(1, p.podNames),
	}
	cmd.Flags().BoolVarP(&v.all, "all", "a", false, "what was done since, too")
	cmd.Flags().StringVarP(&v.format, "format", "f", "", "json, or a Go TEMPLATE for each step")
	completeFlag(cmd, "format", completeWords("json"))
	return cmd
}

func (v *podTraceVerb) show(ctx context.Context, ref string) error {
	steps, err := v.node().PodTrace(ctx, ref)
	if err != nil {
		return err
	}
	if !v.all {
		steps = ofStart(steps)
	}
	if v.format == "json" {
		return writeIndented(v.stdout, steps)
	}
	if v.format != "" {
		for _, step := range steps {
			if err := executeAny(v.stdout, v.format, step); err != nil {
				return err
			}
		}
		return nil
	}
	if len(steps) == 0 {
		fmt.Fprintln(v.stderr, "berth: nothing is remembered of how this pod was started: the machine has been started since")
		return nil
	}
	if width := int(terminal.Size(v.stdout).Cols); width > 0 {
		return waterfall(v.stdout, steps, width, terminal.Colors(v.stdout), time.Now())
	}
	return stepLines(v.stdout, steps)
}

// ofStart are the steps up to the first start of the last container that was
// made with the pod: kubelet starts one after the other.
func ofStart(steps []spec.PodTraceStep) []spec.PodTraceStep {
	calls := map[string]bool{}
	for i, step := range steps {
		if step.Depth > 0 {
			continue
		}
		again := calls[step.Call]
		calls[step.Call] = true
		starts := step.Call == "run pod" || strings.HasPrefix(step.Call, "create container") || strings.HasPrefix(step.Call, "start container")
		if again || !starts {
			return steps[:i]
		}
	}
	return steps
}

// stepLines writes a line for each step: when it began, how long it took, and
// what it was.
func stepLines(w io.Writer, steps []spec.PodTraceStep) error {
	aligned := tabwriter.NewWriter(w, 0, 1, 3, ' ', 0)
	fmt.Fprintln(aligned, "BEGAN\tTOOK\tSTEP")
	for _, step := range steps {
		line := fmt.Sprintf("%s\t%s\t%s", milliseconds(step.Started.Sub(steps[0].Started)), tookOf(step), labelOf(step))
		if step.Error != "" {
			line += ": " + oneLine(step.Error)
		}
		fmt.Fprintln(aligned, line)
	}
	return aligned.Flush()
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func labelOf(step spec.PodTraceStep) string {
	name := step.Step
	if step.Depth == 0 {
		name = step.Call
	}
	return strings.Repeat("  ", step.Depth) + name
}

func tookOf(step spec.PodTraceStep) string {
	if step.Duration == 0 {
		return "…"
	}
	return milliseconds(step.Duration)
}

func milliseconds(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= 100*time.Millisecond:
		return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// Widths of the parts of a waterfall, in characters.
const (
	mostLabel  = 36
	tookWidth  = 9
	leastChart = 16
)

// waterfall draws each step as a bar from its beginning to its end. Where
// nobody worked on the pod between two calls, the time is cut out: a client may
// have taken long over something else.
func waterfall(w io.Writer, steps []spec.PodTraceStep, width int, color bool, now time.Time) error {
	label := 0
	for _, step := range steps {
		label = max(label, len([]rune(labelOf(step))))
	}
	label = min(label, mostLabel)
	chart := max(leastChart, width-label-tookWidth-4)
	axis := newAxis(steps, now)
	var out bytes.Buffer
	fmt.Fprintf(&out, "%*s  %s\n", label, "", axis.ruler(chart))
	for _, step := range steps {
		end := endOf(step, now)
		bar := bar(axis.at(step.Started), axis.at(end), axis.length, chart)
		name := []rune(labelOf(step))
		if len(name) > label {
			name = append(name[:label-1], '…')
		}
		line := fmt.Sprintf("%-*s  %s %*s", label, string(name), bar, tookWidth, tookOf(step))
		if step.Error != "" {
			line += "  ✗"
		}
		fmt.Fprintln(&out, painted(line, step, color))
	}
	for _, step := range steps {
		if step.Error != "" {
			fmt.Fprintf(&out, "✗ %s: %s\n", strings.TrimSpace(labelOf(step)), oneLine(step.Error))
		}
	}
	if axis.idle > 0 {
		fmt.Fprintf(&out, "%s between the calls are left out\n", milliseconds(axis.idle))
	}
	_, err := out.WriteTo(w)
	return err
}

func painted(line string, step spec.PodTraceStep, color bool) string {
	const bold, red, plain = "\x1b[1m", "\x1b[31m", "\x1b[0m"
	switch {
	case color && step.Error != "":
		return red + line + plain
	case color && step.Depth == 0:
		return bold + line + plain
	}
	return line
}

func endOf(step spec.PodTraceStep, now time.Time) time.Time {
	if step.Duration == 0 {
		return now
	}
	return step.Started.Add(step.Duration)
}

// axis maps times to how long the node had worked on the pod by then.
type axis struct {
	busy   []stretch
	length time.Duration
	idle   time.Duration
}

type stretch struct {
	from, to time.Time
	before   time.Duration // of all earlier ones
}

// newAxis joins the outermost steps, which may overlap, to stretches of work.
func newAxis(steps []spec.PodTraceStep, now time.Time) axis {
	var a axis
	for _, step := range steps {
		if step.Depth > 0 && len(a.busy) > 0 {
			continue
		}
		end := endOf(step, now)
		if last := len(a.busy) - 1; last >= 0 && !step.Started.After(a.busy[last].to) {
			if end.After(a.busy[last].to) {
				a.busy[last].to = end
			}
			continue
		}
		a.busy = append(a.busy, stretch{from: step.Started, to: end})
	}
	for i := range a.busy {
		s := &a.busy[i]
		s.before = a.length
		a.length += s.to.Sub(s.from)
		if i > 0 {
			a.idle += s.from.Sub(a.busy[i-1].to)
		}
	}
	return a
}

func (a axis) at(t time.Time) time.Duration {
	for _, s := range a.busy {
		switch {
		case t.Before(s.from):
			return s.before
		case !t.After(s.to):
			return s.before + t.Sub(s.from)
		}
	}
	return a.length
}

// ruler writes times above the bars, so many that they are far apart.
func (a axis) ruler(width int) string {
	const apart = 12
	line := []rune(strings.Repeat(" ", width))
	marks := max(1, width/apart)
	for i := range marks {
		at := i * width / marks
		copy(line[at:], []rune("│"+milliseconds(a.length*time.Duration(i)/time.Duration(marks))))
	}
	return string(line)
}

// eighths of a character, from none to seven.
var eighths = []rune(" ▏▎▍▌▋▊▉")

// bar is drawn from one time to another, in eighths of a character. Even what
// took no time is seen.
func bar(from, to, length time.Duration, width int) string {
	line := []rune(strings.Repeat(" ", width))
	if length <= 0 {
		length = 1
	}
	scale := func(d time.Duration) int { return int(float64(d) / float64(length) * float64(width*8)) }
	first, end := scale(from), scale(to)
	cell := min(first/8, width-1)
	filled := max(1, end-cell*8) // the left end is that of a character
	for i := cell; i < width && filled > 0; i++ {
		if filled >= 8 {
			line[i] = '█'
		} else {
			line[i] = eighths[filled]
		}
		filled -= 8
	}
	return string(line)
}
