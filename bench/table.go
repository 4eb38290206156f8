package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// The columns: sides as their samples are kept.
const (
	peerColumn    = "containerd"
	defaultColumn = "containerd (default)"
	ourColumn     = "berth"
)

// results are all samples: of a row, of a side.
type results map[string]map[string][]float64

func (r results) add(row, side string, samples ...float64) {
	if r[row] == nil {
		r[row] = map[string][]float64{}
	}
	r[row][side] = append(r[row][side], samples...)
}

// median of the samples of a row and side; 0 of none.
func (r results) median(row, side string) float64 {
	sorted := slices.Sorted(slices.Values(r[row][side]))
	switch n := len(sorted); {
	case n == 0:
		return 0
	case n%2 == 0:
		return (sorted[n/2-1] + sorted[n/2]) / 2
	default:
		return sorted[n/2]
	}
}

func (r results) least(row, side string) float64 {
	if len(r[row][side]) == 0 {
		return 0
	}
	return slices.Min(r[row][side])
}

// line is a row of the table.
type line struct {
	row, what, format string
	value             func(row, side string) float64
	bar               string
	met               func(peer, ours float64) bool // nil where nothing is promised
	against           string                        // the column compared with; containerd when ""
}

func (r results) lines(pulls int) []line {
	ratio := func(limit float64) func(peer, ours float64) bool {
		return func(peer, ours float64) bool { return ours <= peer*limit }
	}
	within := func(limit float64) func(peer, ours float64) bool {
		return func(_, ours float64) bool { return ours <= limit }
	}
	pull := fmt.Sprintf("pull and unpack, 20,000 files, 311 MB, 11 layers (median of %d)", pulls)
	return []line{
		{row: "once", what: "create to exit to removed, /bin/true, median", format: "%.1f ms", value: r.median, bar: "≤ 0.3 of containerd", met: ratio(0.3)},
		{row: "once", what: "the same, min", format: "%.1f ms", value: r.least},
		{row: "once-cpu", what: "CPU of daemons in it, runtime included where they reap it", format: "%.1f ms", value: r.median},
		{row: "burst", what: "sleep started, 10 at a time", format: "%.0f /s", value: r.median, bar: "≥ 3 times", met: func(peer, ours float64) bool { return ours >= 3*peer }},
		{row: "memory", what: "memory of supervision per container (PSS)", format: "%.3f MiB", value: r.median, bar: "≤ 0.15 MiB", met: within(0.15)},
		{row: "memory-others", what: "of it shims or keeper, in all", format: "%.1f MiB", value: r.median},
		{row: "memory-daemon", what: "daemon with the containers (PSS)", format: "%.1f MiB", value: r.median},
		{row: "list", what: "list of all containers with state", format: "%.2f ms", value: r.median, bar: "≤ 2 ms", met: within(2)},
		{row: "stats", what: "statistics of all containers", format: "%.2f ms", value: r.median, bar: "≤ 10 ms", met: within(10)},
		{row: "restart", what: "daemon start to first list, containers running", format: "%.0f ms", value: r.median, bar: "≤ 150 ms", met: within(150)},
		{row: "pull", what: pull + ", tuned", format: "%.2f s", value: r.median, bar: "< 0.6 of containerd", met: func(peer, ours float64) bool { return ours < 0.6*peer }},
		{row: "pull", what: "the same, containerd as it comes", format: "%.2f s", value: r.median, against: defaultColumn},
		{row: "pull-cpu", what: "CPU of daemons in it", format: "%.2f s", value: r.median},
		{row: "pull-registry-cpu", what: "CPU of the registry in it", format: "%.2f s", value: r.median},
		{row: "drop", what: "removal of that image", format: "%.2f s", value: r.median},
		{row: "idle", what: "idle CPU with the containers, per second", format: "%.2f ms", value: r.median, bar: "< 1 ms", met: func(_, ours float64) bool { return ours < 1 }},
	}
}

// table is Markdown, aligned for terminals too; "" where nothing of it was
// measured.
func (r results) table(lines []line) string {
	var b strings.Builder
	rows := 0
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| what\t| containerd\t| Berth\t| ratio\t| bar\t| met?\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, l := range lines {
		column := cmp.Or(l.against, peerColumn)
		peer, ours := l.value(l.row, column), l.value(l.row, ourColumn)
		hasPeer, hasOurs := len(r[l.row][column]) > 0, len(r[l.row][ourColumn]) > 0
		if !hasPeer && !hasOurs {
			continue
		}
		rows++
		cells := []string{l.what, "", "", "", l.bar, ""}
		if hasPeer {
			cells[1] = fmt.Sprintf(l.format, peer)
		}
		if hasOurs {
			cells[2] = fmt.Sprintf(l.format, ours)
		}
		if hasPeer && hasOurs && peer != 0 {
			cells[3] = fmt.Sprintf("%.2f", ours/peer)
		}
		if l.met != nil && hasOurs {
			cells[5] = "no"
			if l.met(peer, ours) {
				cells[5] = "yes"
			}
		}
		fmt.Fprintf(w, "| %s\t|\n", strings.Join(cells, "\t| "))
	}
	_ = w.Flush()
	if rows == 0 {
		return ""
	}
	return b.String() + "\n"
}
