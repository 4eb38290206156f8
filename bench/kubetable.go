package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// podLine is a row of the table of pods. crio is what was measured of CRI-O
// 1.37.0 with the same runc on a machine of this kind, at another time.
type podLine struct {
	row, what, format string
	crio              string
	cni, own          float64 // bars; 0 where nothing is promised
	more              bool    // more is better
	share             float64 // of samples that are not above what is told; 0 for the median
}

func podLines() []podLine {
	const ms, share = "%.1f ms", "%.2f ms"
	return []podLine{
		{row: "up", what: "pod up: run, create and start, median", format: ms, crio: "137.5 ms", cni: 70, own: 30},
		{row: "run", what: "of it RunPodSandbox", format: ms, crio: "54.5 ms"},
		{row: "create", what: "CreateContainer", format: ms, crio: "60.4 ms"},
		{row: "start", what: "StartContainer", format: ms, crio: "20.1 ms"},
		{row: "exec", what: "ExecSync of true", format: ms, crio: "30.3 ms"},
		{row: "down", what: "pod down: stop and remove of both", format: ms, crio: "218.8 ms"},
		{row: "cpu", what: "CPU per pod, up, exec and down, one by one", format: ms, crio: "236 ms"},
		{row: "burst", what: "50 pods, 5 at a time", format: "%.1f /s", crio: "11.1 /s", cni: 22, own: 45, more: true},
		{row: "burst-cpu", what: "CPU per pod in it", format: ms, crio: "159 ms"},
		{row: "clear-cpu", what: "CPU per pod in taking them down", format: ms, crio: "79 ms"},
		{row: "updown", what: "CPU per pod, up and down", format: ms, crio: "238 ms", cni: 120, own: 120},
		{row: "memory", what: "processes beside the daemon per pod, PSS", format: "%.0f KiB", crio: "362 KiB", cni: 100, own: 100},
		{row: "memory-all", what: "with the growth of the daemon", format: "%.0f KiB"},
		{row: "memory-daemon", what: "daemon with 50 pods, PSS", format: "%.0f MiB", crio: "84 MiB"},
		{row: "idle", what: "idle CPU with 50 pods, per second", format: "%.2f ms", crio: "0.2 ms", cni: 0.2, own: 0.2},
		{row: "event", what: "end of a process to the client of GetContainerEvents, median", format: share, cni: 5, own: 5},
		{row: "event", what: "the same, 99th percentile", format: share, share: 0.99},
		{row: "log", what: "what a container can say: lines of 100 bytes into its log", format: "%.0f MB/s", cni: 200, own: 200, more: true},
		{row: "log-cpu", what: "CPU for each MB of it, the container's in it", format: share},
		{row: "log-memory", what: "growth of the daemon and what is beside it meanwhile, PSS", format: "%.1f MiB"},
		{row: "list-pods", what: "ListPodSandbox, 50 pods", format: share, crio: "0.65 ms"},
		{row: "list", what: "ListContainers", format: share, crio: "0.46 ms"},
		{row: "stats", what: "ListContainerStats", format: share, crio: "120 ms", cni: 10, own: 10},
		{row: "pod-stats", what: "ListPodSandboxStats", format: share, crio: "141 ms", cni: 10, own: 10},
		{row: "metrics", what: "ListPodSandboxMetrics", format: share, crio: "126 ms", cni: 20, own: 20},
		{row: "metrics-sent", what: "of it until the client has the last byte", format: share},
		{row: "metrics-read", what: "of it the client's own reading of the message", format: share},
		{row: "metrics-again", what: "all of it, asked again within a second", format: share},
		{row: "pod-status", what: "PodSandboxStatus", format: share, crio: "0.68 ms"},
		{row: "container-status", what: "ContainerStatus", format: share, crio: "0.35 ms"},
		{row: "node-status", what: "Status", format: share, crio: "0.33 ms"},
		{row: "restart", what: "daemon killed: start to 100 pods known again", format: "%.0f ms", cni: 200, own: 200},
		{row: "200-list-pods", what: "ListPodSandbox, 200 pods", format: share, cni: 20, own: 20},
		{row: "200-list", what: "ListContainers, 200 pods", format: share, cni: 20, own: 20},
		{row: "200-stats", what: "ListContainerStats, 200 pods", format: share, cni: 20, own: 20},
		{row: "200-pod-stats", what: "ListPodSandboxStats, 200 pods", format: share, cni: 20, own: 20},
		{row: "200-metrics", what: "ListPodSandboxMetrics, 200 pods", format: share, cni: 20, own: 20},
		{row: "200-metrics-sent", what: "of it until the client has the last byte", format: share},
		{row: "200-metrics-read", what: "of it the client's own reading of the message", format: share},
		{row: "200-metrics-again", what: "all of it, asked again within a second", format: share},
	}
}

// podTable is Markdown as the other tables are; "" where no pod was measured.
func (r results) podTable() string {
	for _, column := range []string{peerColumn, cniColumn, ownColumn} {
		if up, down := r.median("cri-burst-cpu", column), r.median("cri-clear-cpu", column); up > 0 {
			r["cri-updown"] = merged(r["cri-updown"], column, up+down)
		}
	}
	var b strings.Builder
	rows := 0
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| pods\t| containerd\t| CRI-O 1.37.0 (quoted)\t| Berth, CNI\t| bar\t| met?\t| Berth, own network\t| bar\t| met?\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, l := range podLines() {
		row := "cri-" + l.row
		if len(r[row]) == 0 {
			continue
		}
		rows++
		cells := []string{l.what, r.cell(row, peerColumn, l), l.crio}
		for _, side := range []struct {
			column string
			bar    float64
		}{{cniColumn, l.cni}, {ownColumn, l.own}} {
			cells = append(cells, r.cell(row, side.column, l), "", "")
			if side.bar == 0 {
				continue
			}
			sign, value := "≤ ", r.quantile(row, side.column, l.share)
			if l.more {
				sign = "≥ "
			}
			cells[len(cells)-2] = sign + fmt.Sprintf(l.format, side.bar)
			if len(r[row][side.column]) > 0 {
				cells[len(cells)-1] = "no"
				if value <= side.bar != l.more || value == side.bar {
					cells[len(cells)-1] = "yes"
				}
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

func merged(row map[string][]float64, column string, value float64) map[string][]float64 {
	if row == nil {
		row = map[string][]float64{}
	}
	row[column] = []float64{value}
	return row
}

func (r results) cell(row, column string, l podLine) string {
	if len(r[row][column]) == 0 {
		return ""
	}
	return fmt.Sprintf(l.format, r.quantile(row, column, l.share))
}

// quantile is what a share of the samples is not above; the median for 0.
func (r results) quantile(row, column string, share float64) float64 {
	sorted := slices.Sorted(slices.Values(r[row][column]))
	if share == 0 || len(sorted) == 0 {
		return r.median(row, column)
	}
	return sorted[min(len(sorted)-1, int(math.Ceil(share*float64(len(sorted))))-1)]
}
