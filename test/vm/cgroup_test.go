package vm_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/spec"
	"berth/test/vm"
)

// inspect is what the node in the guest says of a container.
func inspect(t *testing.T, g *vm.Guest, name string) spec.Container {
	t.Helper()
	all := vm.JSON[spec.Container](t, g, "berth inspect "+name)
	if len(all) != 1 {
		t.Fatalf("inspect %s: %d containers", name, len(all))
	}
	return all[0]
}

// cgroupFiles reads files of a container's cgroup.
func cgroupFiles(t *testing.T, g *vm.Guest, name string, files ...string) map[string]string {
	t.Helper()
	out := g.Run(t, fmt.Sprintf(`
cd /sys/fs/cgroup/berth/$(berth inspect -f '{{.ID}}' %s) || exit 1
for f in %s; do [ -e $f ] && echo "$f=$(cat $f | tr '\n' ';')"; done; true`, name, strings.Join(files, " ")))
	values := map[string]string{}
	for line := range strings.Lines(out) {
		file, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[file] = strings.TrimSuffix(value, ";")
	}
	return values
}

func expect(t *testing.T, got, want map[string]string) {
	t.Helper()
	for file, value := range want {
		if got[file] != value {
			t.Errorf("%s is %q, want %q", file, got[file], value)
		}
	}
}

// Every limit arrives in the cgroup, holds, and is told by the node; limits
// of a running container change; a kill for memory is seen and said.
func TestLimitsOnCgroupV2(t *testing.T) {
	t.Parallel()
	g := vm.Boot(t, vm.Linux612, vm.NodeDisk(t, 768), "")
	g.StartNode(t)
	g.Run(t, "berth load -q -i /first.tar")
	if cgroup := strings.TrimSpace(g.Run(t, "berth info --format '{{.Cgroup}}'")); cgroup != "v2" {
		t.Fatalf("the node sees cgroups %s", cgroup)
	}
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			t.Run("limits", func(t *testing.T) { limits(t, g, runtime) })
			t.Run("pause", func(t *testing.T) { pause(t, g, runtime) })
			t.Run("memory", func(t *testing.T) { outOfMemory(t, g, runtime) })
		})
	}
	t.Run("remapped", func(t *testing.T) { remapped(t, g) })
	t.Run("stats", func(t *testing.T) { statistics(t, g) })
	g.Off(t)
}

func limits(t *testing.T, g *vm.Guest, runtime string) {
	name := "limits-" + runtime
	device := strings.TrimSpace(g.Run(t, "cat /sys/block/vda/dev"))
	g.Run(t, "berth run -d --name "+name+" --runtime "+runtime+` --network none \
	-m 64m --memory-reservation 32m --memory-swap 128m --cpus 0.5 --cpu-shares 512 --cpuset-cpus 1 --cpuset-mems 0 --pids-limit 40 --blkio-weight 300 \
	--device-read-bps /dev/vda:1mb --device-write-bps /dev/vda:2mb --device-read-iops /dev/vda:100 --device-write-iops /dev/vda:200 \
	busybox sleep 1000`)
	files := []string{
		"memory.max", "memory.low", "memory.swap.max", "cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems",
		"pids.max", "io.max", "io.weight", "io.bfq.weight",
	}
	got := cgroupFiles(t, g, name, files...)
	expect(t, got, map[string]string{
		"memory.max": "67108864", "memory.low": "33554432", "memory.swap.max": "67108864",
		"cpu.max": "50000 100000", "cpuset.cpus": "1", "cpuset.mems": "0", "pids.max": "40",
		"io.max": device + " rbps=1048576 wbps=2097152 riops=100 wiops=200",
	})
	weight(t, got, 512)
	if got["io.bfq.weight"] != "default 300" && got["io.weight"] != "default 2929" {
		t.Errorf("the weight of disk traffic is %q, %q", got["io.bfq.weight"], got["io.weight"])
	}
	r := inspect(t, g, name).Config.Resources
	if r.Memory != 64<<20 || r.MemoryReservation != 32<<20 || r.MemorySwap != 128<<20 || r.NanoCPUs != 5e8 || r.CPUShares != 512 || r.CpusetCPUs != "1" || r.Pids != 40 || r.BlkioWeight != 300 {
		t.Errorf("inspect says %+v", r)
	}

	g.Run(t, "berth update -m 96m --memory-reservation 48m --memory-swap 96m --cpus 1.5 --cpu-shares 2048 --cpuset-cpus 0 --pids-limit 50 --blkio-weight 500 "+name)
	got = cgroupFiles(t, g, name, files...)
	expect(t, got, map[string]string{
		"memory.max": "100663296", "memory.low": "50331648", "memory.swap.max": "0",
		"cpu.max": "150000 100000", "cpuset.cpus": "0", "pids.max": "50",
		"io.max": device + " rbps=1048576 wbps=2097152 riops=100 wiops=200",
	})
	weight(t, got, 2048)
	if got["io.bfq.weight"] != "default 500" && got["io.weight"] != "default 4950" {
		t.Errorf("the weight of disk traffic is %q, %q", got["io.bfq.weight"], got["io.weight"])
	}
	if r := inspect(t, g, name).Config.Resources; r.Memory != 96<<20 || r.NanoCPUs != 15e8 || r.CpusetCPUs != "0" || r.Pids != 50 {
		t.Errorf("inspect says after update %+v", r)
	}

	// The limits hold: of processes, and of bytes a second to the disk.
	if out := g.Run(t, "berth exec "+name+" sh -c 'for i in $(seq 60); do sleep 100 & done; wait -n' 2>&1; true"); !strings.Contains(out, "can't fork") {
		t.Errorf("60 processes under a limit of 50: %s", out)
	}
	g.Run(t, "berth restart -t 0 "+name)
	expect(t, cgroupFiles(t, g, name, "memory.max", "pids.max", "cpuset.cpus"), map[string]string{"memory.max": "100663296", "pids.max": "50", "cpuset.cpus": "0"})
	began := time.Now()
	g.Run(t, "berth exec "+name+" dd if=/dev/zero of=/large bs=1M count=8 conv=fsync 2>&1")
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("8 MiB at 2 MiB a second took %v", took)
	}
	g.Run(t, "berth rm -f "+name)
	if out, _ := g.Try(t, "ls -d /sys/fs/cgroup/berth/*/"); strings.Contains(out, "berth/") && !strings.Contains(out, "No such") {
		t.Errorf("a cgroup is left: %s", out)
	}
}

// weight checks cpu.weight; runtimes convert shares in two ways, as a line
// and, newer, as a curve through 1024 = 100.
func weight(t *testing.T, got map[string]string, shares int) {
	t.Helper()
	line := 1 + (shares-2)*9999/262142
	curve := map[int]int{512: 59, 2048: 177}[shares]
	if w, _ := strconv.Atoi(got["cpu.weight"]); w != line && w != curve {
		t.Errorf("cpu.weight of %d shares is %q", shares, got["cpu.weight"])
	}
}

func pause(t *testing.T, g *vm.Guest, runtime string) {
	name := "pause-" + runtime
	g.Run(t, "berth run -d --name "+name+" --runtime "+runtime+" --network none busybox sh -c 'while :; do :; done'")
	g.Run(t, "berth pause "+name)
	if status := inspect(t, g, name).State.Status; status != spec.Paused {
		t.Errorf("paused, it is %s", status)
	}
	usage := func() string {
		return g.Run(t, "grep usage_usec /sys/fs/cgroup/berth/"+inspect(t, g, name).ID+"/cpu.stat")
	}
	expect(t, cgroupFiles(t, g, name, "cgroup.freeze"), map[string]string{"cgroup.freeze": "1"})
	if events := cgroupFiles(t, g, name, "cgroup.events")["cgroup.events"]; !strings.Contains(events, "frozen 1") {
		t.Errorf("cgroup.events: %s", events)
	}
	first := usage()
	g.Run(t, "sleep 0.3")
	if second := usage(); first != second {
		t.Errorf("it works while paused: %s, then %s", first, second)
	}
	if _, code := g.Try(t, "berth exec "+name+" true"); code == 0 {
		t.Error("exec in a paused container succeeded")
	}
	g.Run(t, "berth unpause "+name+"; sleep 0.3")
	if second := usage(); first == second {
		t.Errorf("it does not work after unpause: %s", second)
	}
	g.Run(t, "berth pause "+name+" && berth rm -f "+name)
}

func outOfMemory(t *testing.T, g *vm.Guest, runtime string) {
	name := "oom-" + runtime
	out, code := g.Try(t, "berth run --name "+name+" --runtime "+runtime+" --network none -m 16m --memory-swap 16m busybox tail /dev/zero")
	if code != 137 {
		t.Errorf("killed for memory: exit code %d: %s", code, out)
	}
	if s := inspect(t, g, name).State; s.Status != spec.Stopped || s.ExitCode != 137 || !s.OOMKilled || s.ExitUnknown {
		t.Errorf("killed for memory: %+v", s)
	}
	if events := g.Run(t, "berth events --since 1m --until 0s -f container="+name+" --format '{{.Action}}'"); !strings.Contains(events, "oom") {
		t.Errorf("no event oom: %s", events)
	}
	// A kill that is none of memory's is not said to be one.
	g.Run(t, "berth rm "+name+"; berth run -d --name "+name+" --runtime "+runtime+" --network none -m 16m busybox sleep 100; berth kill "+name+"; berth wait "+name)
	if s := inspect(t, g, name).State; s.ExitCode != 137 || s.OOMKilled {
		t.Errorf("killed by the user: %+v", s)
	}
	g.Run(t, "berth rm "+name)
}

// statistics compares what stats says with what containers are made to use.
func statistics(t *testing.T, g *vm.Guest) {
	g.Run(t, `
berth run -d --name busy -m 64m --cpus 0.5 --pids-limit 30 busybox sh -c 'dd if=/dev/zero of=/file bs=1M count=8 conv=fsync; sleep 1000 & while :; do :; done'
berth run -d --name idle --network none busybox sleep 1000
until [ "$(berth exec busy stat -c %s /file)" = 8388608 ]; do sleep 0.2; done
berth exec busy ping -c 3 -i 0.1 $(berth inspect -f '{{(index .Networks 0).Gateway4}}' busy)
sleep 2`)
	type row struct{ Name, CPUPerc, MemUsage, MemPerc, BlockIO, NetIO, PIDs string }
	rows := map[string]row{}
	for _, r := range vm.JSON[row](t, g, "berth stats --no-stream --format json") {
		rows[r.Name] = r
	}
	busy, idle := rows["busy"], rows["idle"]
	t.Logf("busy: %+v", busy)
	t.Logf("idle: %+v", idle)
	if cpu := percent(t, busy.CPUPerc); cpu < 25 || cpu > 75 {
		t.Errorf("at half a processor stats says %s", busy.CPUPerc)
	}
	if cpu := percent(t, idle.CPUPerc); cpu > 5 {
		t.Errorf("idle, stats says %s", idle.CPUPerc)
	}
	if !strings.HasSuffix(busy.MemUsage, "/ 64MiB") || percent(t, busy.MemPerc) <= 0 || percent(t, busy.MemPerc) > 50 {
		t.Errorf("memory: %s, %s", busy.MemUsage, busy.MemPerc)
	}
	if busy.PIDs != "2" || idle.PIDs != "1" {
		t.Errorf("processes: %s, %s", busy.PIDs, idle.PIDs)
	}
	if _, written, _ := strings.Cut(busy.BlockIO, " / "); !regexp.MustCompile(`^8\.\d+ ?M`).MatchString(written) {
		t.Errorf("8 MiB written: %s", busy.BlockIO)
	}
	if strings.HasPrefix(busy.NetIO, "0B") || !strings.HasPrefix(idle.NetIO, "0B / 0B") && idle.NetIO != "--" {
		t.Errorf("network: %s, %s", busy.NetIO, idle.NetIO)
	}
	g.Run(t, "berth rm -f busy idle")
}

func percent(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil {
		t.Errorf("a percentage: %v", err)
	}
	return v
}
