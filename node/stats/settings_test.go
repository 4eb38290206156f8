package stats

import (
	"os"
	"path/filepath"
	"testing"
)

// What is set is read only when it is asked for, and is taken over from before
// otherwise.
func TestSettings(t *testing.T) {
	for name, r := range map[string]*Reader{
		"v1": tree(t, map[string]string{
			"unified/cpu.pressure": psiNone, "cpu/pod/cpu.shares": "512\n", "cpu/pod/cpu.cfs_quota_us": "5000\n", "cpu/pod/cpu.cfs_period_us": "100000\n",
			"memory/pod/memory.usage_in_bytes": "1000\n", "memory/pod/memory.limit_in_bytes": "4096\n", "memory/pod/memory.memsw.limit_in_bytes": "8192\n",
			"memory/pod/memory.soft_limit_in_bytes": "2048\n", "pids/pod/pids.current": "6\n", "pids/pod/pids.max": "100\n",
		}),
		"v2": tree(t, map[string]string{
			"cgroup.controllers": "cpu\n", "pod/cpu.weight": "20\n", "pod/cpu.max": "5000 100000\n", "pod/memory.current": "1000\n",
			"pod/memory.max": "4096\n", "pod/memory.swap.max": "8192\n", "pod/memory.low": "2048\n", "pod/pids.current": "6\n", "pod/pids.max": "100\n",
		}),
	} {
		p := r.Begin()
		read := func(want Parts) Usage {
			u, err := p.Read("/pod", 0, want)
			if err != nil {
				t.Fatal(name, err)
			}
			return u
		}
		set, used := read(Basic|Finer|Settings), read(Basic|Finer)
		if used.Memory.Usage != 1000 || used.Tasks.Usage != 6 || used.CPU.Quota+used.CPU.Shares+used.Memory.Limit+used.Memory.SwapLimit+used.Memory.Reservation+used.Tasks.Limit != 0 {
			t.Errorf("%s: of use alone %+v", name, used)
		}
		if set.CPU.Quota != 5000 || set.CPU.Shares == 0 || set.Memory.Limit != 4096 || set.Memory.SwapLimit != 8192 || set.Memory.Reservation != 2048 || set.Tasks.Limit != 100 {
			t.Errorf("%s: with what is set %+v", name, set)
		}
		used.Set(&set)
		used.Time = set.Time
		if used.CPU != set.CPU || used.Memory != set.Memory || used.Tasks != set.Tasks {
			t.Errorf("%s: taken over %+v, was %+v", name, used, set)
		}
		p.End()
	}
}

// A cgroup is not asked for huge pages where nobody at the top has used any.
func TestHugePagesOfNobody(t *testing.T) {
	const file = "hugetlb.2MB.max_usage_in_bytes"
	r := tree(t, map[string]string{
		"unified/cpu.pressure": psiNone, "cpuacct/top/c/cpuacct.usage": "1\n",
		"hugetlb/top/" + file: "0\n", "hugetlb/top/c/" + file: "4096\n", "hugetlb/top/c/hugetlb.2MB.usage_in_bytes": "4096\n",
	})
	r.pages = []string{"2MB"}
	huge := func() PageUsage {
		p := r.Begin()
		defer p.End()
		u, err := p.Read("/top/c", 0, Basic|Pages)
		if err != nil || len(u.Huge) != 1 {
			t.Fatal(u.Huge, err)
		}
		return u.Huge[0]
	}
	if one := huge(); one != (PageUsage{Size: "2MB"}) {
		t.Errorf("nobody has any, and one has %+v", one)
	}
	if err := os.WriteFile(filepath.Join(r.root, "hugetlb/top", file), []byte("4096\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if one := huge(); one.Peak != 4096 || one.Usage != 4096 {
		t.Errorf("%+v", one)
	}
}

// The one process of a cgroup is known, and its cgroup is not asked for others.
func TestOneProcess(t *testing.T) {
	r := tree(t, map[string]string{
		"cgroup.controllers": "pids\n", "pod/pids.current": "1\n", "pod/cgroup.procs": "7\n8\n", "/proc/7/stat": "7 (x) S 1 1\n", "/proc/8/stat": "8 (y) R 1 1\n",
	})
	p := r.Begin()
	defer p.End()
	if u, err := p.Read("/pod", 7, Finer|Count|Insides); err != nil || u.Processes.Count != 1 || u.Processes.States != (States{Sleeping: 1}) {
		t.Errorf("%+v, %v", u.Processes, err)
	}
	if u, err := p.Read("/pod", 0, Finer|Count|Insides); err != nil || u.Processes.Count != 2 {
		t.Errorf("of a cgroup whose process is not known %+v, %v", u.Processes, err)
	}
}
