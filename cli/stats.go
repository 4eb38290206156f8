package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"berth/cli/table"
	"berth/cli/terminal"
	"berth/spec"
)

type statsVerb struct {
	*program
	listFlags
	all, noStream bool
}

func (p *program) stats() *cobra.Command {
	v := &statsVerb{program: p}
	cmd := &cobra.Command{
		Use:   "stats [OPTIONS] [CONTAINER...]",
		Short: "Show what containers use, as it changes",
		Long: `Show what containers use: those named, or all that run. On a terminal the table
is drawn again each second, with the last minute of CPU and memory where it is
wide enough; in a pipe a table follows the other.`,
		Example: `  berth stats
  berth stats --no-stream web db
  berth stats --no-stream --format '{{.Name}} {{.MemUsage}}'`,
		Args: arguments(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := v.follow(cmd.Context(), args)
			if len(args) == 1 {
				err = p.meantContainer(cmd.Context(), err, args[0])
			}
			return err
		},
		ValidArgsFunction: completeAll(-1, p.containersThat(running)),
	}
	v.addFormat(cmd.Flags())
	cmd.Flags().BoolVarP(&v.all, "all", "a", false, "those that do not run too")
	cmd.Flags().BoolVar(&v.noStream, "no-stream", false, "show it once")
	completeFlag(cmd, "format", completeWords("json", "table"))
	return cmd
}

// errShown ends a stream that has told enough.
var errShown = errors.New("shown")

func (v *statsVerb) follow(ctx context.Context, refs []string) error {
	history := newUsageHistory()
	screen := &statsScreen{out: v.stdout, live: terminal.Is(v.stdout) && !v.noStream && v.format == ""}
	err := v.node().ContainerStatsStream(ctx, refs, func(now []spec.Stats) error {
		measured := history.add(now)
		if v.noStream && !measured && len(now) > 0 {
			return nil // how much CPU is used shows only in a second look
		}
		if err := v.show(ctx, screen, refs, history.rows(now, v.noTrunc)); err != nil {
			return err
		}
		if v.noStream {
			return errShown
		}
		return nil
	})
	if errors.Is(err, errShown) || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (v *statsVerb) show(ctx context.Context, screen *statsScreen, refs []string, rows []statsRow) error {
	if v.all && len(refs) == 0 {
		more, err := v.idle(ctx, rows)
		if err != nil {
			return err
		}
		rows = append(rows, more...)
	}
	view := statsView()
	if screen.live && int(terminal.Size(v.stdout).Cols) >= wideStats {
		view.Columns += "\t{{.CPUHistory}}\t{{.MemHistory}}"
	}
	var frame bytes.Buffer
	if err := write(&frame, &v.listFlags, view, rows); err != nil {
		return err
	}
	return screen.draw(frame.Bytes())
}

// idle are rows of containers that do not run and so use nothing.
func (v *statsVerb) idle(ctx context.Context, shown []statsRow) ([]statsRow, error) {
	containers, err := v.node().ContainerList(ctx, true, nil)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, row := range shown {
		known[row.Name] = true
	}
	var rows []statsRow
	for _, c := range containers {
		if !known[c.Name] {
			row := statsRow{ID: c.ID, Container: c.ID, Name: c.Name, CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "-- / --", BlockIO: "-- / --", PIDs: "--"}
			if !v.noTrunc {
				row.ID = table.ID(row.ID)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// statsScreen draws one table over the other.
type statsScreen struct {
	out   io.Writer
	live  bool
	begun bool
}

func (s *statsScreen) draw(frame []byte) error {
	if !s.live {
		_, err := s.out.Write(frame)
		return err
	}
	const clearLine, clearBelow, home, clearAll = "\x1b[K", "\x1b[J", "\x1b[H", "\x1b[2J"
	out := []byte(home)
	if !s.begun {
		out = []byte(clearAll + home)
		s.begun = true
	}
	out = append(out, bytes.ReplaceAll(frame, []byte("\n"), []byte(clearLine+"\n"))...)
	_, err := s.out.Write(append(out, clearBelow...))
	return err
}

// wideStats is the width from which on there is room for the history.
const wideStats = 150

const (
	historyLength = 60 // seconds kept
	historyWidth  = 20 // characters shown
)

type statsRow struct {
	BlockIO    string
	CPUHistory string `json:"-"`
	CPUPerc    string
	Container  string
	ID         string
	MemHistory string `json:"-"`
	MemPerc    string
	MemUsage   string
	Name       string
	NetIO      string
	PIDs       string
}

func statsView() table.View[statsRow] {
	return table.View[statsRow]{
		Columns: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
		Titles: map[string]string{
			"ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
			"NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "CPUHistory": "CPU, LAST MINUTE", "MemHistory": "MEMORY",
		},
	}
}

// usageHistory remembers what containers used.
type usageHistory struct {
	before map[string]spec.Stats
	cpu    map[string][]float64 // share of one CPU, in percent
	memory map[string][]float64 // bytes
}

func newUsageHistory() *usageHistory {
	return &usageHistory{before: map[string]spec.Stats{}, cpu: map[string][]float64{}, memory: map[string][]float64{}}
}

// add takes in what containers use now, and says whether it is the second
// look at one of them at least.
func (h *usageHistory) add(now []spec.Stats) bool {
	again := false
	for _, s := range now {
		before, known := h.before[s.ID]
		h.before[s.ID] = s
		if elapsed := s.Time.Sub(before.Time); known && elapsed > 0 && s.CPU.Total >= before.CPU.Total {
			again = true
			h.cpu[s.ID] = remember(h.cpu[s.ID], float64(s.CPU.Total-before.CPU.Total)/float64(elapsed.Nanoseconds())*100)
		}
		h.memory[s.ID] = remember(h.memory[s.ID], float64(s.Memory.Usage))
	}
	return again
}

func remember(values []float64, v float64) []float64 {
	values = append(values, v)
	return values[max(0, len(values)-historyLength):]
}

func (h *usageHistory) rows(now []spec.Stats, full bool) []statsRow {
	rows := make([]statsRow, len(now))
	for i, s := range now {
		rows[i] = h.row(s, full)
	}
	return rows
}

func (h *usageHistory) row(s spec.Stats, full bool) statsRow {
	var received, sent uint64
	for _, n := range s.Network {
		received += n.RxBytes
		sent += n.TxBytes
	}
	cpu := 0.0
	if values := h.cpu[s.ID]; len(values) > 0 {
		cpu = values[len(values)-1]
	}
	row := statsRow{
		ID: s.ID, Container: s.ID, Name: s.Name, CPUPerc: table.Percent(cpu), MemPerc: table.Percent(0),
		MemUsage: table.Memory(s.Memory.Usage) + " / " + table.Memory(s.Memory.Limit),
		NetIO:    table.Size(int64(received)) + " / " + table.Size(int64(sent)),
		BlockIO:  table.Size(int64(s.IO.ReadBytes)) + " / " + table.Size(int64(s.IO.WriteBytes)),
		PIDs:     fmt.Sprint(s.Pids.Current),

		CPUHistory: table.Sparkline(thin(h.cpu[s.ID], historyWidth), historyWidth, float64(100*max(1, s.CPU.Online))),
		MemHistory: table.Sparkline(thin(h.memory[s.ID], historyWidth), historyWidth, 0),
	}
	if s.Memory.Limit > 0 {
		row.MemPerc = table.Percent(float64(s.Memory.Usage) / float64(s.Memory.Limit) * 100)
	}
	if !full {
		row.ID = table.ID(s.ID)
	}
	return row
}

// thin makes at most width values of many: each the largest of its stretch,
// counted from the end, so that peaks do not get lost.
func thin(values []float64, width int) []float64 {
	each := (historyLength + width - 1) / width
	var out []float64
	for end := len(values); end > 0; end -= each {
		peak := 0.0
		for _, v := range values[max(0, end-each):end] {
			peak = max(peak, v)
		}
		out = append([]float64{peak}, out...)
	}
	return out
}
