package stats

import (
	"errors"
	"math"
	"path/filepath"
	"testing"
	"time"

	"berth/base/errs"
)

func TestDetailV2(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\n",
		"memory.current": "5000000\n", "memory.max": "max\n", "memory.peak": "6000000\n",
		"memory.stat":   "anon 1000\nfile 2000\n",
		"memory.events": "low 0\noom 3\noom_kill 2\n",
		"pids.current":  "4\n", "pids.max": "max\n",
		"io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nbad\n8:16 rbytes=10\n",
		"hugetlb.2MB.current": "2097152\n", "hugetlb.2MB.max": "max\n", "hugetlb.2MB.events": "max 7\n",
	} {
		write(t, filepath.Join(root, "ns/x", name), text)
	}
	r := &Reader{root: root, unified: true, pages: []string{"2MB", "1GB"}}
	d, err := r.Detail("/ns/x")
	if err != nil {
		t.Fatal(err)
	}
	if !d.Unified || d.CPU["nr_periods"] != 9 || d.Memory["file"] != 2000 || d.Events["oom_kill"] != 2 {
		t.Errorf("got %+v", d)
	}
	if want := (Level{Usage: 5000000, Peak: 6000000, Limit: math.MaxUint64}); d.Levels["memory"] != want {
		t.Errorf("memory %+v", d.Levels["memory"])
	}
	if want := (Level{Usage: 4}); d.Pids != want {
		t.Errorf("pids %+v", d.Pids)
	}
	if len(d.IO) != 2 || d.IO[0].Values["wios"] != 4 || d.IO[1].Minor != 16 {
		t.Errorf("io %+v", d.IO)
	}
	if want := (Level{Usage: 2 << 20, Limit: math.MaxUint64, Failures: 7}); len(d.Huge) != 1 || d.Huge["2MB"] != want {
		t.Errorf("huge pages %+v", d.Huge)
	}
	if _, err := r.Detail("/ns/y"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a missing cgroup: %v", err)
	}
}

func TestDetailV1(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"cpuacct/ns/x/cpuacct.stat":                            "user 5\nsystem 6\n",
		"cpuacct/ns/x/cpuacct.usage_percpu":                    "123456700 89 0 0\n",
		"cpu/ns/x/cpu.stat":                                    "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
		"memory/ns/x/memory.usage_in_bytes":                    "1000\n",
		"memory/ns/x/memory.limit_in_bytes":                    "9223372036854771712\n",
		"memory/ns/x/memory.memsw.failcnt":                     "8\n",
		"memory/ns/x/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"memory/ns/x/memory.stat":                              "cache 1\ntotal_cache 2\n",
		"pids/ns/x/pids.current":                               "1\n",
		"blkio/ns/x/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 13\n",
	} {
		write(t, filepath.Join(root, name), text)
	}
	r := &Reader{root: root, cpus: 2}
	d, err := r.Detail("ns/x")
	if err != nil {
		t.Fatal(err)
	}
	if d.CPU["usage"] != 123456789 || d.CPU["user"] != 50_000_000 || d.CPU["throttled_time"] != 3 || len(d.PerCPU) != 2 {
		t.Errorf("cpu %+v %v", d.CPU, d.PerCPU)
	}
	if d.Levels["memory"].Limit != 9223372036854771712 || d.Levels["swap"].Failures != 8 || d.Events["oom_kill"] != 1 {
		t.Errorf("memory %+v %+v", d.Levels, d.Events)
	}
	if len(d.Bytes) != 3 || d.Bytes[1] != (Moved{8, 0, "Write", 2}) || d.Moves != nil {
		t.Errorf("io %+v", d.Bytes)
	}
}

func TestDetailOfAHundred(t *testing.T) {
	r, _ := hundred(t)
	cheap(t, 150*time.Millisecond, func(i int) {
		if d, err := r.Detail(cgroup(i)); err != nil || len(d.Memory) < 10 {
			t.Fatal(d, err)
		}
	})
}

func FuzzDetail(f *testing.F) {
	f.Add("8:0 Read 1\n8:0 rbytes=1 x=\nTotal 3\nname 5\nmax")
	f.Fuzz(func(t *testing.T, text string) {
		moved([]byte(text))
		deviceOf(text)
		level([]byte(text))
		if v := values([]byte(text)); v == nil {
			t.Error("nothing to put values into")
		}
	})
}

func BenchmarkDetailOfAHundred(b *testing.B) {
	r, _ := hundred(b)
	for b.Loop() {
		for i := range 100 {
			if _, err := r.Detail(cgroup(i)); err != nil {
				b.Fatal(err)
			}
		}
	}
}
