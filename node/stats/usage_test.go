package stats

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
)

const everything = Basic | Finer | Pressures | Disks | Pages | Count | Insides | Settings

// tree writes files into a folder that looks like mounted cgroups, and reads it.
func tree(t *testing.T, files map[string]string) *Reader {
	t.Helper()
	root, proc := t.TempDir(), t.TempDir()
	for name, text := range files {
		if rest, ok := strings.CutPrefix(name, "/proc/"); ok {
			write(t, filepath.Join(proc, rest), text)
			continue
		}
		write(t, filepath.Join(root, name), text)
	}
	r, err := OpenAt(root, proc)
	if err != nil {
		t.Fatal(err)
	}
	r.pages, r.sized = []string{"2MB", "1GB"}, false
	return r
}

func fdLinks(t *testing.T, dir string, targets ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, target := range targets {
		if err := os.Symlink(target, filepath.Join(dir, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	psi     = "some avg10=1.50 avg60=0.25 avg300=0.10 total=2000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=1000\n"
	psiNone = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
)

func TestUsageV2(t *testing.T) {
	r := tree(t, map[string]string{
		"cgroup.controllers": "cpu io memory pids\n", "cpu.pressure": psiNone,
		"pod/c/cpu.stat":            "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 3\nthrottled_usec 7\nnr_bursts 0\n",
		"pod/c/cpu.weight":          "20\n",
		"pod/c/cpu.max":             "50000 100000\n",
		"pod/c/memory.current":      "5000000\n",
		"pod/c/memory.max":          "8000000\n",
		"pod/c/memory.peak":         "6000000\n",
		"pod/c/memory.low":          "0\n",
		"pod/c/memory.min":          "4096\n",
		"pod/c/memory.swap.current": "100\n",
		"pod/c/memory.swap.max":     "0\n",
		"pod/c/memory.stat":         "anon 1000\nfile 2000\nkernel 3000\nfile_mapped 40\ninactive_file 1500000\npgfault 50\npgmajfault 6\nthp_fault_alloc 1\n",
		"pod/c/memory.events":       "low 0\nhigh 0\nmax 11\noom 3\noom_kill 2\noom_group_kill 0\n",
		"pod/c/pids.current":        "4\n", "pod/c/pids.max": "max\n",
		"pod/c/io.stat":      "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nodd\n8:16 \n",
		"pod/c/cgroup.procs": "12\n", "pod/c/in/cgroup.procs": "13\n99\n",
		"pod/c/cpu.pressure": psi, "pod/c/memory.pressure": psi, "pod/c/io.pressure": psiNone,
		"pod/c/hugetlb.2MB.current": "2097152\n", "pod/c/hugetlb.2MB.peak": "4194304\n",
		"/proc/12/stat": "12 (a (R) b) S 1 1\n", "/proc/13/stat": "13 (x) R 1 1\n",
	})
	fdLinks(t, filepath.Join(r.proc, "12/fd"), "/dev/null", "socket:[1]", "socket:[2]", "pipe:[3]")
	fdLinks(t, filepath.Join(r.proc, "13/fd"), "socket:[9]")
	p := r.Begin()
	defer p.End()
	u, err := p.Read("/pod/c", 0, everything)
	if err != nil {
		t.Fatal(err)
	}
	want := "{Total:1500000 User:1000000 System:500000 Periods:9 Throttled:3 ThrottledTime:7000 Shares:500 Quota:50000 Period:100000}" +
		" {Usage:5000000 WorkingSet:3500000 RSS:1000 Cache:2000 Mapped:40 Swap:100 Limit:8000000 Faults:50 MajorFaults:6 OwnFaults:50 OwnMajorFaults:6" +
		" Kernel:3000 Peak:6000000 Failures:11 OOMKills:2 SwapLimit:0 Reservation:4096 SwapLimited:true}" +
		" {Usage:4 Peak:0 Limit:0 Failures:0}" +
		" {Some:{Avg10:1.5 Avg60:0.25 Avg300:0.1 Total:2000000} Full:{Avg10:0.5 Avg60:0 Avg300:0 Total:1000000}} {Some:{Avg10:0 Avg60:0 Avg300:0 Total:0} Full:{Avg10:0 Avg60:0 Avg300:0 Total:0}}" +
		" [{Major:8 Minor:0 ReadBytes:1 WriteBytes:2 DiscardBytes:5 Reads:3 Writes:4 Discards:6 SyncBytes:0 AsyncBytes:0 Syncs:0 Asyncs:0}" +
		" {Major:8 Minor:16 ReadBytes:0 WriteBytes:0 DiscardBytes:0 Reads:0 Writes:0 Discards:0 SyncBytes:0 AsyncBytes:0 Syncs:0 Asyncs:0}]" +
		" [{Size:2MB Usage:2097152 Peak:4194304}]" +
		" {Count:3 Files:5 Sockets:3 FilesLimit:0 States:{Running:1 Sleeping:1 Waiting:0 Stopped:0 Zombie:0}}"
	got := fmt.Sprintf("%+v %+v %+v %+v %+v %+v %+v %+v", u.CPU, u.Memory, u.Tasks, *u.Pressure.CPU, *u.Pressure.IO, u.IO, u.Huge, u.Processes)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := p.Read("/pod/other", 0, everything); !errors.Is(err, errs.NotFound) {
		t.Errorf("a missing cgroup: %v", err)
	}
	if u, err := p.Read("/pod/c", 0, Basic); err != nil || u.Tasks.Usage != 0 || u.Pressure.CPU != nil || u.Processes.Count != 0 || u.CPU.Total != 1500000 {
		t.Errorf("the basic part: %+v, %v", u, err)
	}
}

func TestUsageV1(t *testing.T) {
	r := tree(t, map[string]string{
		"unified/cpu.pressure":     psiNone,
		"unified/pod/cpu.pressure": psi, "unified/pod/memory.pressure": psi, "unified/pod/io.pressure": psiNone,
		"cpuacct/pod/cpuacct.usage":                            "123456789\n",
		"cpuacct/pod/cpuacct.stat":                             "user 5\nsystem 6\n",
		"cpu/pod/cpu.stat":                                     "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
		"cpu/pod/cpu.shares":                                   "512\n",
		"cpu/pod/cpu.cfs_quota_us":                             "-1\n",
		"cpu/pod/cpu.cfs_period_us":                            "100000\n",
		"memory/pod/memory.usage_in_bytes":                     "1000\n",
		"memory/pod/memory.max_usage_in_bytes":                 "2000\n",
		"memory/pod/memory.limit_in_bytes":                     "9223372036854771712\n",
		"memory/pod/memory.memsw.limit_in_bytes":               "67108864\n",
		"memory/pod/memory.soft_limit_in_bytes":                "9223372036854771712\n",
		"memory/pod/memory.failcnt":                            "7\n",
		"memory/pod/memory.kmem.usage_in_bytes":                "300\n",
		"memory/pod/memory.oom_control":                        "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"memory/pod/memory.stat":                               "cache 1\npgfault 8\npgmajfault 9\ntotal_cache 2\ntotal_rss 3\ntotal_swap 4\ntotal_mapped_file 5\ntotal_inactive_file 400\ntotal_pgfault 80\ntotal_pgmajfault 90\n",
		"pids/pod/pids.current":                                "6\n",
		"pids/pod/pids.max":                                    "100\n",
		"pids/pod/cgroup.procs":                                "12\n",
		"blkio/pod/blkio.throttle.io_service_bytes_recursive":  "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Async 4\n8:0 Discard 5\n8:0 Total 8\n8:16 Read 10\nTotal 18\n",
		"blkio/pod/blkio.throttle.io_serviced_recursive":       "8:0 Read 11\n8:0 Write 12\nTotal 23\n",
		"hugetlb/pod/hugetlb.2MB.max_usage_in_bytes":           "2097152\n",
		"hugetlb/pod/hugetlb.2MB.usage_in_bytes":               "4096\n",
		"hugetlb/pod/hugetlb.1GB.max_usage_in_bytes":           "0\n",
		"/proc/12/stat":                                        "12 (x) D 1 1\n",
		"/proc/12/net/dev":                                     "Inter-|\n face |\n  eth0: 10 11 12 13 0 0 0 0 20 21 22 23 0 0 0 0\n",
		"memory/elsewhere/cgroup.procs":                        "\n",
		"blkio/elsewhere/blkio.throttle.io_serviced_recursive": "Total 0\n",
	})
	p := r.Begin()
	defer p.End()
	u, err := p.Read("/pod", 0, everything)
	if err != nil {
		t.Fatal(err)
	}
	want := "{Total:123456789 User:50000000 System:60000000 Periods:1 Throttled:2 ThrottledTime:3 Shares:512 Quota:0 Period:100000}" +
		" {Usage:1000 WorkingSet:600 RSS:3 Cache:2 Mapped:5 Swap:4 Limit:0 Faults:80 MajorFaults:90 OwnFaults:8 OwnMajorFaults:9" +
		" Kernel:300 Peak:2000 Failures:7 OOMKills:1 SwapLimit:67108864 Reservation:0 SwapLimited:false}" +
		" {Usage:6 Peak:0 Limit:100 Failures:0}" +
		" [{Major:8 Minor:0 ReadBytes:1 WriteBytes:2 DiscardBytes:5 Reads:11 Writes:12 Discards:0 SyncBytes:3 AsyncBytes:4 Syncs:0 Asyncs:0}" +
		" {Major:8 Minor:16 ReadBytes:10 WriteBytes:0 DiscardBytes:0 Reads:0 Writes:0 Discards:0 SyncBytes:0 AsyncBytes:0 Syncs:0 Asyncs:0}]" +
		" [{Size:2MB Usage:4096 Peak:2097152} {Size:1GB Usage:0 Peak:0}]" +
		" {Count:1 Files:0 Sockets:0 FilesLimit:0 States:{Running:0 Sleeping:0 Waiting:1 Stopped:0 Zombie:0}} 2000000"
	got := fmt.Sprintf("%+v %+v %+v %+v %+v %+v %d", u.CPU, u.Memory, u.Tasks, u.IO, u.Huge, u.Processes, u.Pressure.Memory.Some.Total)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n, err := r.Traffic(12, ""); err != nil || len(n) != 1 || n[0].TxBytes != 20 {
		t.Errorf("traffic %v, %v", n, err)
	}
	if _, err := r.Traffic(77, ""); !errors.Is(err, errs.NotFound) {
		t.Errorf("traffic of nobody: %v", err)
	}
}

func TestKernelWithoutPressure(t *testing.T) {
	r := tree(t, map[string]string{"cgroup.controllers": "\n", "pod/cpu.stat": "usage_usec 1\n"})
	p := r.Begin()
	defer p.End()
	if u, err := p.Read("/pod", 0, everything); err != nil || r.Pressure() || u.Pressure.CPU != nil {
		t.Errorf("%+v, %v", u.Pressure, err)
	}
}

// A process of this machine, whose usage is known: it takes memory and CPU, and
// holds files and sockets.
func TestUsageOfAProcess(t *testing.T) {
	r, pid := hundred(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	const script = `sock=3; x=$(head -c 30000000 /dev/zero | tr '\0' x); exec 5<>/dev/null 6<>/dev/null 7>&3; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo ready; read stop`
	cmd := exec.Command("sh", "-c", script)
	cmd.ExtraFiles = []*os.File{file} // is 3
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	base := cgroup(1)
	// It is in its cgroup before it does anything.
	cmd.Args[2] = `for d in $DIRS; do echo $$ > $d/cgroup.procs; done; ` + script
	var dirs []string
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
		dirs = append(dirs, filepath.Join(r.root, c, base))
	}
	if r.unified {
		dirs = []string{filepath.Join(r.root, base)}
	}
	cmd.Env = append(os.Environ(), "DIRS="+strings.Join(dirs, " "))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	r.members = filepath.Join(r.root, "pids")
	if r.unified {
		r.members = r.root
	}
	p := r.Begin()
	defer p.End()
	u, err := p.Read(base, cmd.Process.Pid, everything)
	if err != nil {
		t.Fatal(err)
	}
	// 0 in, 1 out, 2 (the test's stderr or /dev/null), 3 and 7 the socket, 5, 6.
	if u.Processes.Count != 1 || u.Processes.Files < 7 || u.Processes.Sockets < 2 || u.Processes.States.Sleeping+u.Processes.States.Running != 1 {
		t.Errorf("processes %+v", u.Processes)
	}
	if u.Memory.RSS < 25_000_000 || u.Memory.Usage < u.Memory.RSS || u.Memory.Peak < u.Memory.Usage || u.Memory.WorkingSet > u.Memory.Usage || u.Memory.Faults < 5000 {
		t.Errorf("memory %+v", u.Memory)
	}
	if u.CPU.Total < uint64(50*time.Millisecond) || u.CPU.Total > uint64(time.Minute) || u.Tasks.Usage != 1 {
		t.Errorf("cpu %+v, tasks %+v", u.CPU, u.Tasks)
	}
	if limit := u.Processes.FilesLimit; limit < 64 {
		t.Errorf("limit of files %d", limit)
	}
	_ = in.Close()
	_ = pid
}

// Sockets are counted anew when the number of descriptors changes, and not for
// more descriptors in a pass than a few thousand.
func TestSocketsAreCountedOnce(t *testing.T) {
	r := tree(t, map[string]string{"cgroup.controllers": "\n", "pod/cgroup.procs": "5\n", "/proc/5/stat": "5 (x) S 1\n"})
	dir := filepath.Join(r.proc, "5/fd")
	fdLinks(t, dir, "socket:[1]", "socket:[2]")
	count := func(p *Pass) uint64 {
		u, err := p.Read("/pod", 0, Insides)
		if err != nil {
			t.Fatal(err)
		}
		return u.Processes.Sockets
	}
	p := r.Begin()
	defer p.End()
	if n := count(p); n != 2 || p.links != linksEach-2 {
		t.Errorf("%d sockets, %d links left", n, p.links)
	}
	if n := count(p); n != 2 || p.links != linksEach-2 {
		t.Errorf("again: %d sockets, %d links left", n, p.links)
	}
	if err := os.Symlink("socket:[3]", filepath.Join(dir, "2")); err != nil {
		t.Fatal(err)
	}
	p.links = 0
	if n := count(p); n != 2 {
		t.Errorf("%d sockets, though nothing more was to be looked at", n)
	}
	p.links = linksEach
	if n := count(p); n != 3 {
		t.Errorf("%d sockets of three", n)
	}
}

func TestRememberedProcessesAreBounded(t *testing.T) {
	var p passes
	old, now := time.Now().Add(-time.Hour), time.Now()
	for pid := range rememberedProcesses {
		p.remember(pid, socketCount{at: old})
	}
	p.remember(rememberedProcesses, socketCount{at: now})
	if len(p.known) != 1 {
		t.Errorf("%d are remembered", len(p.known))
	}
}

func TestNames(t *testing.T) {
	r, err := Open()
	if err != nil {
		t.Skip(err)
	}
	fs, err := r.FileSystem("/")
	if err != nil || fs.Size == 0 || fs.Free > fs.Size || fs.Device == "" || strings.Contains(fs.Device, "\n") {
		t.Errorf("%+v, %v", fs, err)
	}
	if _, err := r.FileSystem("/no/such/place"); err == nil {
		t.Error("a place that is not there")
	}
	if name := r.DeviceName(4000, 5); name != "4000:5" {
		t.Errorf("a device that is not there is called %q", name)
	}
	weights := []uint64{sharesOf(0), sharesOf(1), sharesOf(10000)}
	if !slices.Equal(weights, []uint64{0, 2, 262144}) {
		t.Errorf("shares %v", weights)
	}
}

func TestTrafficOfANamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	here, err := r0(t).Traffic(0, "/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := r0(t).Traffic(os.Getpid(), "")
	if err != nil || len(mine) != len(here) {
		t.Errorf("%d interfaces one way, %d the other: %v", len(here), len(mine), err)
	}
	if _, err := r0(t).Traffic(0, "/no/such/namespace"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a namespace that is not there: %v", err)
	}
}

func r0(t *testing.T) *Reader {
	r, err := Open()
	if err != nil {
		t.Skip(err)
	}
	return r
}

func FuzzUsage(f *testing.F) {
	f.Add("8:0 Read 1\n8:0 rbytes=1 x=\nTotal 3\nname 5\nmax\n" + psi)
	f.Fuzz(func(t *testing.T, text string) {
		devicesV1([]byte(text), nil, (*DeviceUsage).addBytes)
		devicesV2([]byte(text))
		each([]byte(text), func(key []byte, _ uint64) {
			if strings.Contains(string(key), "\n") {
				t.Errorf("a key of two lines: %q", key)
			}
		})
		if p := pressure([]byte(text)); p == nil || p.Some.Avg10 > 100 {
			t.Errorf("%+v", p)
		}
	})
}

func BenchmarkUsageOfAHundred(b *testing.B) {
	r, _ := hundred(b)
	for b.Loop() {
		p := r.Begin()
		for i := range 100 {
			if _, err := p.Read(cgroup(i), 0, everything); err != nil {
				b.Fatal(err)
			}
		}
		p.End()
	}
}
