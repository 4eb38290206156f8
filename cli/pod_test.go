package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"berth/spec"
)

// ms is a moment after noon.
func ms(n float64) time.Time { return noon.Add(time.Duration(n * float64(time.Millisecond))) }

func step(call, name string, depth int, from, took float64, failed string) spec.PodTraceStep {
	return spec.PodTraceStep{Call: call, Step: name, Depth: depth, Started: ms(from), Duration: time.Duration(took * float64(time.Millisecond)), Error: failed}
}

// aStart is one in which kubelet took half a second between two calls, and one
// step failed.
func aStart() []spec.PodTraceStep {
	return []spec.PodTraceStep{
		step("run pod", "run pod", 0, 0, 12, ""),
		step("run pod", "namespaces", 1, 0.2, 0.4, ""),
		step("run pod", "network", 1, 1, 10, ""),
		step("run pod", "plugin bridge with a name that is rather long", 2, 1.5, 7, "exit status 1\nno address"),
		step("create container web", "create container web", 0, 512, 4, ""),
		step("create container web", "snapshot", 1, 512, 1, ""),
		step("start container web", "start container web", 0, 516, 20, ""),
		step("start container web", "runtime", 1, 517, 0, ""),
		step("stop pod", "stop pod", 0, 900, 5, ""),
	}
}

func TestWaterfall(t *testing.T) {
	var out bytes.Buffer
	start := ofStart(aStart())
	if len(start) != 8 {
		t.Fatalf("%d steps of the start", len(start))
	}
	for _, width := range []int{100, 60, 10} {
		if err := waterfall(&out, start, width, false, ms(530)); err != nil {
			t.Fatal(err)
		}
		out.WriteString("--\n")
	}
	if err := stepLines(&out, aStart()); err != nil {
		t.Fatal(err)
	}
	golden(t, "pod-trace.txt", out.String())

	out.Reset()
	if err := waterfall(&out, start, 80, true, ms(530)); err != nil || strings.Count(out.String(), "\x1b[31m") != 1 || strings.Count(out.String(), "\x1b[1m") != 3 {
		t.Errorf("colors: %v\n%q", err, out.String())
	}
	out.Reset()
	if err := waterfall(&out, start[:1], 80, false, noon); err != nil || !strings.Contains(out.String(), "█") {
		t.Errorf("one step: %v\n%s", err, out.String())
	}
}

func TestStartEndsWithWhatIsDoneAgain(t *testing.T) {
	steps := append(ofStart(aStart()), step("start container web", "", 0, 600, 1, ""), step("run pod", "", 0, 700, 1, ""))
	if got := len(ofStart(steps)); got != 8 {
		t.Errorf("%d steps", got)
	}
	if ofStart(nil) != nil {
		t.Error("steps of nothing")
	}
}

func TestPodTables(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 64) }
	pods := []spec.Pod{
		{
			ID: id("a"), State: spec.PodReady, Created: noon.Add(-2 * time.Hour), IPs: []string{"10.1.0.7", "fd00::7"}, Runtime: "runc",
			Config: spec.PodConfig{
				Name: "front-5d9c", Namespace: "shop", UID: "u1", Labels: map[string]string{"app": "front"},
				Ports: []spec.PodPort{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {ContainerPort: 81}},
			},
		},
		{
			ID: id("b"), State: spec.PodNotReady, Created: noon.Add(-26 * time.Hour),
			Config: spec.PodConfig{
				Name: "kube-proxy", Namespace: "kube-system", UID: "u2", Attempt: 2,
				Security: spec.PodSecurity{Namespaces: spec.PodNamespaces{Network: spec.NamespaceNode}},
			},
		},
	}
	containers := []spec.PodContainer{
		{
			ID: id("1"), Pod: id("a"), State: spec.Running, Created: noon.Add(-time.Hour), Started: noon.Add(-time.Hour), Pid: 77,
			Config: spec.PodContainerConfig{Name: "web", UserImage: "docker.io/library/nginx:1.27", Image: "sha256:" + id("d")},
		},
		{
			ID: id("2"), Pod: id("a"), State: spec.Stopped, Created: noon.Add(-2 * time.Hour), Finished: noon.Add(-time.Hour), ExitCode: 137, Reason: "OOMKilled",
			Config: spec.PodContainerConfig{Name: "web", Image: "sha256:" + id("d"), Attempt: 1},
		},
	}
	var out bytes.Buffer
	for _, full := range []bool{false, true} {
		var rows []podRow
		var inside []podContainerRow
		for _, p := range pods {
			rows = append(rows, newPodRow(p, containers, noon, full))
		}
		for _, c := range containers {
			inside = append(inside, newPodContainerRow(c, pods[0], noon, full))
		}
		view := podView()
		view.Columns += "\t{{.Ports}}\t{{.IPs}}\t{{.Attempt}}\t{{.UID}}\t{{.Label \"app\"}}"
		if err := view.Write(&out, "", rows); err != nil {
			t.Fatal(err)
		}
		if err := podContainerView().Write(&out, "", inside); err != nil {
			t.Fatal(err)
		}
	}
	written := uint64(123456)
	stats := spec.PodStats{
		ID: id("a"), Name: "front-5d9c", Namespace: "shop",
		PodUsage: spec.PodUsage{CPURate: 250_000_000, Memory: 64 << 20, Limit: 256 << 20, Processes: 3, Reads: 4096, IOWait: 1_500_000},
		Network:  []spec.InterfaceStats{{Name: "eth0", RxBytes: 1000, TxBytes: 20}, {Name: "eth1", RxBytes: 1}},
	}
	stats.Containers = []spec.PodContainerStats{{ID: id("1"), Name: "web", PodUsage: spec.PodUsage{Memory: 1 << 20}, Written: &written}}
	if err := podStatsView().Write(&out, "", []podStatsRow{newPodStatsRow(stats, false)}); err != nil {
		t.Fatal(err)
	}
	if err := podContainerStatsView().Write(&out, "", []podStatsRow{newPodContainerStatsRow(stats, stats.Containers[0], false)}); err != nil {
		t.Fatal(err)
	}
	golden(t, "pods.txt", out.String())
	for want, filter := range map[bool]spec.Filter{
		true: {"name": {"we"}, "state": {"created", "running"}}, false: {"id": {"2"}},
	} {
		if got := fitsPodContainer(containers[0], filter); got != want {
			t.Errorf("%v: %v", filter, got)
		}
	}
}
