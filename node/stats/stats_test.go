package stats

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/test/machine"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestV2(t *testing.T) {
	root, proc := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 3\nthrottled_usec 7\n",
		"memory.current": "5000000\n",
		"memory.max":     "max\n",
		"memory.stat":    "anon 1000\nfile 2000\ninactive_file 1500000\npgmajfault 4\n",
		"memory.events":  "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
		"pids.current":   "4\n", "pids.max": "100\n",
		"io.stat":      "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n",
		"cgroup.procs": "12\n13\n", "sub/cgroup.procs": "14\n",
	} {
		write(t, filepath.Join(root, "berth/x", name), text)
	}
	write(t, filepath.Join(proc, "12/net/dev"), "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 11 12 13 0 0 0 0 20 21 22 23 0 0 0 0\n")
	r := &Reader{root: root, proc: proc, unified: true, memory: 1 << 30, cpus: 2}
	s, err := r.Read("/berth/x", 12)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v %+v %+v %+v %+v", s.CPU, s.Memory, s.Pids, s.IO, s.Network)
	want := "{Total:1500000 User:1000000 System:500000 ThrottledPeriods:3 ThrottledTime:7000 Online:2}" +
		" {Usage:3500000 Limit:1073741824 Cache:2000 RSS:1000 OOMKills:2 MajorFault:4} {Current:4 Limit:100}" +
		" {ReadBytes:11 WriteBytes:22 Reads:33 Writes:44}" +
		" [{Name:eth0 RxBytes:10 RxPackets:11 RxErrors:12 RxDropped:13 TxBytes:20 TxPackets:21 TxErrors:22 TxDropped:23}]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n, err := r.OOMKills("/berth/x"); n != 2 || err != nil {
		t.Errorf("oom kills %d, %v", n, err)
	}
	if pids, err := r.Pids("/berth/x"); err != nil || !slices.Equal(pids, []int{12, 13, 14}) {
		t.Errorf("pids %v, %v", pids, err)
	}
	for what, err := range map[string]error{
		"read":      second(r.Read("/berth/y", 0)),
		"oom kills": second(r.OOMKills("/berth/y")),
		"pids":      second(r.Pids("/berth/y")),
	} {
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("%s of a missing cgroup: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestV1(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"cpuacct/berth/x/cpuacct.usage":                           "123456789\n",
		"cpuacct/berth/x/cpuacct.stat":                            "user 5\nsystem 6\n",
		"cpu/berth/x/cpu.stat":                                    "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
		"memory/berth/x/memory.usage_in_bytes":                    "1000\n",
		"memory/berth/x/memory.limit_in_bytes":                    "9223372036854771712\n",
		"memory/berth/x/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"memory/berth/x/memory.stat":                              "cache 1\ntotal_cache 2\ntotal_rss 3\ntotal_inactive_file 400\ntotal_pgmajfault 5\n",
		"pids/berth/x/pids.current":                               "1\n",
		"pids/berth/x/pids.max":                                   "max\n",
		"blkio/berth/x/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\n8:16 Read 10\nTotal 13\n",
	} {
		write(t, filepath.Join(root, name), text)
	}
	r := &Reader{root: root, memory: 1 << 20, cpus: 4}
	s, err := r.Read("/berth/x", 0)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v %+v %+v %+v", s.CPU, s.Memory, s.Pids, s.IO)
	want := "{Total:123456789 User:50000000 System:60000000 ThrottledPeriods:2 ThrottledTime:3 Online:4}" +
		" {Usage:600 Limit:1048576 Cache:2 RSS:3 OOMKills:1 MajorFault:5} {Current:1 Limit:0} {ReadBytes:11 WriteBytes:2 Reads:0 Writes:0}"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestMain(m *testing.M) { os.Exit(machine.Run(m, machine.Empty)) }

// cgroup is one of those that hundred makes.
func cgroup(i int) string { return "/" + machine.Name() + "-stats/" + strconv.Itoa(i) }

// hundred makes a hundred real cgroups, the first with a process in it.
func hundred(tb testing.TB) (*Reader, int) {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("cgroups need root")
	}
	r, err := Open()
	if err != nil {
		tb.Skipf("no cgroups: %v", err)
	}
	parents := []string{r.root}
	if !r.unified {
		parents = nil
		for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
			parents = append(parents, filepath.Join(r.root, c))
		}
	}
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for _, p := range parents {
		base := filepath.Join(p, machine.Name()+"-stats")
		if err := os.Mkdir(base, 0o755); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = os.Remove(base) })
		for i := range 100 {
			dir := filepath.Join(base, strconv.Itoa(i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				tb.Fatal(err)
			}
			tb.Cleanup(func() { _ = os.Remove(dir) })
		}
		if err := os.WriteFile(filepath.Join(base, "0/cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			tb.Fatal(err)
		}
	}
	// Before the folders: an ended process leaves its cgroup a moment later.
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return r, cmd.Process.Pid
}

func TestRealCgroups(t *testing.T) {
	r, pid := hundred(t)
	s, err := r.Read(cgroup(0), pid)
	if err != nil || s.Pids.Current != 1 || s.Memory.Limit == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if pids, err := r.Pids(cgroup(0)); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("pids %v, %v; want %d", pids, err, pid)
	}
	if _, err := r.OOMKills(cgroup(0)); err != nil {
		t.Error(err)
	}
	cheap(t, 100*time.Millisecond, func(i int) {
		if _, err := r.Read(cgroup(i), pid); err != nil {
			t.Fatal(err)
		}
	})
}

// cheap wants a hundred readings to take less of a processor than that, ten
// times the aim, whoever else has it meanwhile.
func cheap(t *testing.T, most time.Duration, read func(i int)) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	best := time.Hour
	for range 5 {
		begin := cpuTime(t)
		for i := range 100 {
			read(i)
		}
		best = min(best, cpuTime(t)-begin)
	}
	t.Logf("a hundred containers in %v", best)
	if best > most {
		t.Errorf("a hundred containers took %v", best)
	}
}

// cpuTime is what this thread has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func BenchmarkHundred(b *testing.B) {
	r, pid := hundred(b)
	for b.Loop() {
		for i := range 100 {
			if _, err := r.Read(cgroup(i), pid); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("oom_kill 3\n8:0 Read 1\n eth0: 1 2 3 4 5 6 7 8 9 10 11 12\n8:0 rbytes=1\n"))
	f.Add([]byte("max"))
	f.Fuzz(func(t *testing.T, text []byte) {
		number(text)
		field(text, "oom_kill")
		blkio(text)
		ioStat(text)
		for _, i := range parseNetDev(text) {
			if i.Name == "lo" {
				t.Error("loopback counted")
			}
		}
	})
}
