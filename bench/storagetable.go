package main

import "fmt"

// storageLines are the rows of the layer store.
func (r results) storageLines(pulls int) []line {
	ratio := func(limit float64) func(peer, ours float64) bool {
		return func(peer, ours float64) bool { return ours <= peer*limit }
	}
	within := func(limit float64) func(peer, ours float64) bool {
		return func(_, ours float64) bool { return ours <= limit }
	}
	below := func(limit float64) func(peer, ours float64) bool {
		return func(_, ours float64) bool { return ours < limit }
	}
	ms, times := "%.2f ms", "%.2fx"
	var lines []line
	add := func(l line) {
		l.value = r.median
		lines = append(lines, l)
	}
	for _, n := range commitCounts() {
		row := fmt.Sprintf("storage-commit-%d", n)
		add(line{row: row, what: fmt.Sprintf("commit of %d changed files", n), format: ms, bar: "< 1 ms", met: below(1)})
		add(line{row: row + "-unmount", what: "with the unmount before it", format: ms})
		add(line{row: row + "-sync", what: "until it would survive a loss of power", format: ms})
		add(line{row: row + "-cpu", what: "CPU of it, with all that follows in the background", format: ms})
	}
	for _, depth := range chainDepths() {
		add(line{row: chainRow(depth), what: fmt.Sprintf("prepare + mount on %d layers", depth), format: ms, bar: "≤ 0.5 of containerd", met: ratio(0.5)})
	}
	add(line{row: "storage-chain-flat", what: "of these the slowest to the fastest", format: times, bar: "≤ 1.3x", met: within(1.3)})
	pull := fmt.Sprintf("pull, 20,000 files, 360 MB, 50 layers (median of %d)", pulls)
	for _, p := range []struct {
		tag, what string
		bar       float64
	}{
		{"first", pull + ", into nothing", 0.5},
		{"moved", "the same bodies in other layers, after it", 0.2},
		{"modes", "the same layers and one of new modes and times, of every file", 0.1},
		{"config", "the same layers and a new configuration", 0},
	} {
		l := line{row: "storage-pull-" + p.tag, what: p.what, format: "%.2f s"}
		if p.bar > 0 {
			l.bar, l.met = fmt.Sprintf("≤ %.1f of containerd", p.bar), ratio(p.bar)
		}
		add(l)
		add(line{row: "storage-pull-" + p.tag + "-cpu", what: "CPU of daemons in it", format: "%.2f s"})
	}
	add(line{row: "storage-remove", what: "removal of that image, as the caller sees it", format: ms, bar: "< 10 ms", met: below(10)})
	many := "storage of 20, 40, 60, 80, 100 containers, cumulative"
	add(line{row: "storage-containers", what: many + ", against Berth's overlay driver", format: "%.0f ms", against: overlayColumn, bar: "≤ 0.18 of it", met: ratio(0.18)})
	add(line{row: "storage-containers", what: "against containerd", format: "%.0f ms"})
	add(line{row: "storage-containers-cpu", what: "CPU of it, background included, against Berth's overlay driver", format: "%.0f ms", against: overlayColumn})
	add(line{row: "storage-containers-cpu", what: "against containerd", format: "%.0f ms"})
	add(line{row: "storage-build", what: "40 steps of clone, change 200 files, commit", format: "%.0f ms", bar: "≤ 0.4 of containerd", met: ratio(0.4)})
	add(line{row: "storage-build-own", what: "of it outside of the changes themselves", format: "%.0f ms"})
	add(line{row: "storage-build-cpu", what: "CPU of the store in it, background included", format: "%.0f ms"})
	add(line{row: "storage-build-volatile", what: "the loop without the syncs of overlayfs, on both sides", format: "%.0f ms"})
	add(line{row: "storage-walk", what: "cold walk of 20,000 files in 50 layers, CPU", format: "%.0f ms", bar: "≤ 0.25 of overlay", met: ratio(0.25)})
	add(line{row: "storage-walk", what: "against Berth's overlay driver", format: "%.0f ms", against: overlayColumn})
	add(line{row: "storage-walk-wall", what: "by the clock", format: "%.0f ms"})
	add(line{row: "storage-walk-stat", what: "cold stat of each file after it, CPU", format: "%.0f ms"})
	add(line{row: "storage-cache", what: "page cache of two images that share 90 % of their bytes, to that of one", format: times, bar: "1.1x", met: within(1.149)})
	add(line{row: "storage-cache-pages", what: "that is", format: "%.0f MB"})
	add(line{row: "storage-disk", what: "disk for 10 versions that differ in 5 % of files, to that for one; Berth with blobs = drop", format: times, bar: "< 1.6x", met: below(1.6)})
	add(line{row: "storage-disk-one", what: "disk for one", format: "%.0f MB"})
	add(line{row: "storage-disk-all", what: "disk for all", format: "%.0f MB"})
	add(line{row: "storage-disk-all", what: "the same, where Berth keeps the compressed layers (as it comes; here on the left)", format: "%.0f MB", against: keepColumn})
	add(line{row: "storage-lazy", what: "time to ready with lazy start, 300 MB, 100 Mbit/s, against a full pull", format: "%.2f s", against: "full pull", bar: "≤ 0.3 of it", met: ratio(0.3)})
	return lines
}
