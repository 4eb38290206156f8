package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/cli/progress"
	"berth/client"
	"berth/spec"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func someContainers() []spec.Container {
	id := func(c string) string { return strings.Repeat(c, 64) }
	return []spec.Container{
		{
			ID: id("a"), Name: "web", Image: "docker.io/library/nginx:latest", Created: noon.Add(-2 * time.Hour),
			Args:   []string{"/docker-entrypoint.sh", "nginx", "-g", "daemon off;"},
			State:  spec.ContainerState{Status: spec.Running, StartedAt: noon.Add(-2 * time.Hour), Health: &spec.Health{Status: "healthy"}},
			Ports:  []spec.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostIP: "::1", HostPort: 53, ContainerPort: 53, Protocol: "udp"}},
			Config: spec.ContainerConfig{Labels: map[string]string{"team": "web", "a": "b"}}, Exposed: []spec.Exposed{"80/tcp", "443/tcp"},
			Mounts:   []spec.Mounted{{MountPoint: spec.MountPoint{Type: "volume"}, Name: "data"}, {MountPoint: spec.MountPoint{Type: "bind"}, Host: "/srv/a-long-path/site"}},
			Networks: []spec.Endpoint{{Network: "bridge"}, {Network: "lab"}},
			Size:     &spec.ContainerSizes{RW: 1200, RootFS: 187_000_000},
		},
		{
			ID: id("b"), Name: "job", Image: "localhost:5000/team/app:1.2", Created: noon.Add(-26 * time.Hour), Args: []string{"true"},
			State:   spec.ContainerState{Status: spec.Stopped, ExitCode: 137, OOMKilled: true, FinishedAt: noon.Add(-30 * time.Second)},
			Exposed: []spec.Exposed{"99/tcp"},
		},
		{
			ID: id("c"), Name: "lost", Image: "sha256:" + id("d"), Created: noon.Add(-48 * time.Hour),
			State: spec.ContainerState{Status: spec.Stopped, ExitCode: 255, ExitUnknown: true, FinishedAt: noon.Add(-5 * time.Minute)},
			Ports: []spec.PortMapping{{HostIP: "10.0.0.1", HostPort: 8000, ContainerPort: 9000, Range: 10}},
		},
	}
}

func TestContainerTable(t *testing.T) {
	var out bytes.Buffer
	for _, full := range []bool{false, true} {
		var rows []containerRow
		for _, c := range someContainers() {
			rows = append(rows, newContainerRow(c, noon, full))
		}
		view := containerView()
		view.Columns += "\t{{.Size}}\t{{.Mounts}}\t{{.Networks}}\t{{.Labels}}\t{{.LocalVolumes}}\t{{.Label \"team\"}}"
		if err := view.Write(&out, "", rows); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "ps.txt", out.String())
}

func TestStatus(t *testing.T) {
	for want, s := range map[string]spec.ContainerState{
		"Up 5 minutes":                    {Status: spec.Running, StartedAt: noon.Add(-5 * time.Minute)},
		"Up 5 minutes (unhealthy)":        {Status: spec.Running, StartedAt: noon.Add(-5 * time.Minute), Health: &spec.Health{Status: "unhealthy"}},
		"Up 5 minutes (health: starting)": {Status: spec.Running, StartedAt: noon.Add(-5 * time.Minute), Health: &spec.Health{Status: "starting"}},
		"Up 5 minutes (Paused)":           {Status: spec.Paused, StartedAt: noon.Add(-5 * time.Minute)},
		"Exited (3) 2 seconds ago":        {Status: spec.Stopped, ExitCode: 3, FinishedAt: noon.Add(-2 * time.Second)},
		"Exited (unknown) 2 seconds ago":  {Status: spec.Stopped, ExitUnknown: true, FinishedAt: noon.Add(-2 * time.Second)},
		"Restarting (1) 2 seconds ago":    {Status: spec.Restarting, ExitCode: 1, FinishedAt: noon.Add(-2 * time.Second)},
		"Created":                         {Status: spec.Created},
		"Dead":                            {Status: spec.Dead},
		"Removal In Progress":             {Status: spec.Removing},
	} {
		if got := status(s, noon); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestImageTable(t *testing.T) {
	images := []spec.Image{
		{ID: "sha256:" + strings.Repeat("1", 64), Target: "sha256:" + strings.Repeat("2", 64), Names: []string{"docker.io/library/alpine:3.20", "localhost:5000/base:1"}, Created: noon.Add(-72 * time.Hour), Size: 7_800_000},
		{ID: "sha256:" + strings.Repeat("3", 64), Names: nil, Size: 12},
		{ID: "sha256:" + strings.Repeat("4", 64), Names: []string{"docker.io/team/app@sha256:" + strings.Repeat("5", 64)}, Created: noon.Add(-time.Minute)},
	}
	var out bytes.Buffer
	for _, digests := range []bool{false, true} {
		if err := imageView(digests).Write(&out, "", imageRows(images, noon, false)); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "images.txt", out.String())
	rows := imageRows(images, noon, false)
	for name, want := range map[string]bool{"alpine": true, "alpine:3.20": true, "alpine:3": false, "docker.io/library/alpine": true, "base": false, "111111": true} {
		if rows[0].named(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestInspectTemplates(t *testing.T) {
	c := someContainers()[0]
	c.Networks[0].IPv4 = "10.0.0.2/24"
	c.State.Pid = 4_000_000
	thing := inspectedContainer{c}
	for format, want := range map[string]string{
		"{{.State.Status}} {{.State.Running}} {{.State.Pid}}":                          "running true 4000000",
		"{{.state.status}} {{.state.pid}}":                                             "running 4000000",
		"{{.NetworkSettings.IPAddress}}":                                               "10.0.0.2",
		"{{range $n, $e := .NetworkSettings.Networks}}{{$n}}={{$e.IPAddress}} {{end}}": "bridge=10.0.0.2 lab= ",
		`{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`:               "8080",
		"{{.Name}} {{.Config.Labels.team}} {{json .Config.Labels}} {{.Path}}":          `web web {"a":"b","team":"web"} /docker-entrypoint.sh`,
		"{{.State.Health.Status}}":                                                     "healthy",
	} {
		var out bytes.Buffer
		if err := executeAny(&out, format, thing); err != nil || out.String() != want+"\n" {
			t.Errorf("%s: %v\n got %q\nwant %q", format, err, out.String(), want)
		}
	}
	var out bytes.Buffer
	err := executeAny(&out, "{{.Nothing}}", thing)
	if err == nil || !strings.Contains(err.Error(), "shows what there is") || out.Len() > 0 {
		t.Errorf("%v %q", err, out.String())
	}
	out.Reset()
	if err := writeIndented(&out, []any{thing}); err != nil || !strings.HasPrefix(out.String(), "[\n    {\n        \"id\": \"aaaa") || strings.Contains(out.String(), "Container") {
		t.Errorf("%v %s", err, out.String()[:80])
	}
}

func TestLogWriter(t *testing.T) {
	var out bytes.Buffer
	w := newLogWriter(&out, true)
	for _, line := range []client.LogLine{
		{Time: noon, Text: []byte("one")}, {Time: noon, Text: []byte("tw"), Partial: true}, {Time: noon.Add(time.Second), Text: []byte("o")}, {Time: noon, Text: nil},
	} {
		if err := w.write(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	at := "2026-11-21T12:00:00.000000000Z "
	if want := at + "one\n" + at + "two\n" + at + "\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestStatsTable(t *testing.T) {
	at := func(second int, cpu, memory uint64) spec.Stats {
		s := spec.Stats{ID: strings.Repeat("a", 64), Name: "web", Time: noon.Add(time.Duration(second) * time.Second), CPU: spec.CPUStats{Total: cpu, Online: 2}}
		s.Memory.Usage, s.Memory.Limit, s.Pids.Current = memory, 1<<30, 7
		s.Network = []spec.InterfaceStats{{RxBytes: 1000, TxBytes: 2000}, {RxBytes: 500}}
		s.IO.ReadBytes = 4096
		return s
	}
	history := newUsageHistory()
	if history.add([]spec.Stats{at(0, 0, 1<<20)}) {
		t.Error("one look is enough for CPU?")
	}
	if !history.add([]spec.Stats{at(1, 5e8, 256<<20)}) {
		t.Error("two looks are not enough for CPU")
	}
	history.add([]spec.Stats{at(3, 25e8, 512<<20)})
	view := statsView()
	view.Columns += "\t{{.CPUHistory}}\t{{.MemHistory}}"
	var out bytes.Buffer
	if err := view.Write(&out, "", history.rows([]spec.Stats{at(3, 25e8, 512<<20)}, false)); err != nil {
		t.Fatal(err)
	}
	golden(t, "stats.txt", out.String())
	for i := range 200 {
		history.add([]spec.Stats{at(4+i, 0, 0)})
	}
	if n := len(history.memory[strings.Repeat("a", 64)]); n != historyLength {
		t.Errorf("%d seconds of history", n)
	}
}

func TestStatsScreen(t *testing.T) {
	var out bytes.Buffer
	screen := &statsScreen{out: &out, live: true}
	for range 2 {
		if err := screen.draw([]byte("a\nb\n")); err != nil {
			t.Fatal(err)
		}
	}
	frame := "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"
	if want := "\x1b[2J" + frame + frame; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	shown := progress.New(&out)
	layer := "sha256:" + strings.Repeat("ab", 32)
	for _, p := range []spec.Progress{
		{Phase: spec.Resolving, Item: "docker.io/library/alpine:latest"},
		{Phase: spec.Fetching, Item: layer, Total: 3_000_000},
		{Phase: spec.Fetching, Item: layer, Current: 1000, Total: 3_000_000},
		{Phase: spec.Fetching, Item: layer, Current: 3_000_000, Total: 3_000_000, Status: "complete"},
		{Phase: spec.Unpacking, Item: layer, Status: "complete"},
		{Phase: spec.Fetching, Item: "sha256:" + strings.Repeat("cd", 32), Status: "exists"},
		{Phase: spec.Pushing, Item: layer, Status: "mounted"},
		{Phase: spec.Done, Status: "complete"},
	} {
		shown.Show(p)
	}
	shown.End(true)
	golden(t, "progress.txt", out.String())
}

func TestEventLine(t *testing.T) {
	e := spec.Event{Time: noon, Type: "container", Action: "die", ID: "abc", Attributes: map[string]string{"name": "web", "exitCode": "1"}}
	want := noon.Local().Format("2006-01-02T15:04:05.000000000Z07:00") + " container die abc (exitCode=1, name=web)"
	if got := eventLine(e); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestInfo(t *testing.T) {
	var out bytes.Buffer
	err := writeInfo(&out, spec.Info{
		ID: "n1", Name: "host", Version: spec.Version{Version: "1.0"}, Started: noon.Add(-time.Hour), Kernel: "6.18", OS: "Debian", Architecture: "amd64",
		CPUs: 2, Memory: 24 << 30, Cgroup: "v1", Root: "/var/lib/berth", State: "/run/berth", Socket: "/run/berth/berth.sock", Snapshotter: "overlay",
		Storage:  []spec.StorageDriver{{Name: "lcfs", Why: "no EROFS in this kernel"}, {Name: "overlay"}},
		Runtimes: map[string]string{"runc": "1.1.5", "crun": "1.8.1"}, Runtime: "crun", NodePid: 10, KeeperPid: 11,
		Containers: map[spec.State]int{spec.Running: 3, spec.Stopped: 1}, Images: 2, Security: []string{"seccomp"}, Warnings: []string{"no swap limit"},
	}, noon)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "info.txt", out.String())
}

func TestDiskTable(t *testing.T) {
	var out bytes.Buffer
	err := diskView().Write(&out, "", diskRows(spec.DiskUsage{
		Images: spec.DiskShare{Total: 3, Active: 1, Size: 200_000_000, Reclaimable: 50_000_000}, Volumes: spec.DiskShare{Total: 1},
	}))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "df.txt", out.String())
}

func TestVerboseDisk(t *testing.T) {
	var out bytes.Buffer
	size := int64(4096)
	usage := spec.DiskUsage{
		Images: spec.DiskShare{Total: 2, Size: 320_000_000}, Containers: spec.DiskShare{Total: 1, Size: 8192}, Volumes: spec.DiskShare{Total: 1, Size: size},
		Blobs: spec.DiskShare{Total: 9, Size: 90_000_000}, Other: 70_000, Total: 410_082_288,
		Store: spec.StoreUsage{Objects: 300_000_000, ObjectCount: 12345, Metadata: 20_000_000, Uppers: 8192},
		ImageList: []spec.ImageUsage{
			{
				ID: "sha256:" + strings.Repeat("ab", 32), Names: []string{"docker.io/library/app:1", "localhost:5000/app:1"}, Created: noon.Add(-time.Hour),
				Shared: 100_000_000, Own: 50_000_000, Containers: 1,
			},
			{ID: "sha256:" + strings.Repeat("cd", 32), Created: noon.Add(-48 * time.Hour), Own: 1000},
		},
		ContainerList: []spec.Container{{
			ID: strings.Repeat("1f", 32), Name: "web", Image: "docker.io/library/app:1", Args: []string{"serve"}, Created: noon.Add(-time.Minute),
			State: spec.ContainerState{Status: spec.Created}, Size: &spec.ContainerSizes{RW: 8192, RootFS: 9999},
		}},
		VolumeList: []spec.Volume{{Name: "data", UsedBy: []string{"x"}, Size: &size}},
	}
	if err := writeUsage(&out, "", usage, noon); err != nil {
		t.Fatal(err)
	}
	golden(t, "df-v.txt", out.String())
	out.Reset()
	if err := writeUsage(&out, "{{.store.objectCount}}", usage, noon); err != nil || strings.TrimSpace(out.String()) != "12345" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestPorts(t *testing.T) {
	var out bytes.Buffer
	p := &program{stdout: &out}
	m := spec.PortMapping{HostPort: 8000, ContainerPort: 9000, Range: 2}
	p.printPort(m, "")
	fmt.Fprintln(&out, p.printPort(m, "9001/tcp"), p.printPort(m, "9002/tcp"))
	want := "9000/tcp -> 0.0.0.0:8000\n9000/tcp -> [::]:8000\n9001/tcp -> 0.0.0.0:8001\n9001/tcp -> [::]:8001\n0.0.0.0:8001\n[::]:8001\ntrue false\n"
	if out.String() != want {
		t.Errorf("got %q", out.String())
	}
}
