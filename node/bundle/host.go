package bundle

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Host is what this node has to give. Detect finds it out.
type Host struct {
	Hostname string
	// Caps are the capabilities that a process of this node can have.
	Caps []string
	// OOMScoreAdj is this process's own; without CAP_SYS_RESOURCE nothing may
	// go below it.
	OOMScoreAdj int
	// Rlimits are this process's hard limits: nofile, core, …
	Rlimits map[string]uint64

	Cgroup      int             // version: 1 (also hybrid) or 2
	Controllers map[string]bool // of cgroups: memory, cpu, cpuset, pids, io (v1: blkio), devices, freezer
	Swap        bool            // cgroups can limit swap
	BlkioWeight bool            // cgroups can weigh disk traffic
	CPUs        []int           // that containers may use
	Mems        []int           // memory nodes

	Seccomp  bool
	AppArmor bool
	UserNS   bool
	Mqueue   bool   // the host has /dev/mqueue mounted
	Init     string // a static init program for containers; "" where there is none

	// Remap is the ids for containers with a user namespace.
	Remap Idmap
}

// Detect looks at this machine and at the rights of this process.
func Detect() (Host, error) {
	h := Host{Init: findInit(), Remap: findRemap(), Rlimits: map[string]uint64{}}
	var err error
	if h.Hostname, err = os.Hostname(); err != nil {
		return Host{}, fmt.Errorf("detect host: %w", err)
	}
	if h.Caps, err = ownCaps(); err != nil {
		return Host{}, fmt.Errorf("detect host: capabilities: %w", err)
	}
	h.OOMScoreAdj, _ = strconv.Atoi(readLine("/proc/self/oom_score_adj"))
	for name, number := range rlimitNumbers() {
		var limit unix.Rlimit
		if unix.Getrlimit(number, &limit) == nil {
			h.Rlimits[name] = limit.Max
		}
	}
	detectCgroups(&h)
	_, seccomp := statusLine("Seccomp")
	h.Seccomp = seccomp
	h.Mqueue = exists("/dev/mqueue")
	h.AppArmor = readLine("/sys/module/apparmor/parameters/enabled") == "Y"
	_, err = os.Stat("/proc/self/ns/user")
	h.UserNS = err == nil && readLine("/proc/sys/user/max_user_namespaces") != "0"
	return h, nil
}

// can is whether the node has a capability to give.
func (h Host) can(name string) bool { return slices.Contains(h.Caps, name) }

// ownCaps are the capabilities in this process's bounding and permitted
// sets: no child can have more.
func ownCaps() ([]string, error) {
	own, err := capability.NewPid2(0)
	if err != nil {
		return nil, err
	}
	if err := own.Load(); err != nil {
		return nil, err
	}
	var names []string
	for _, c := range capability.ListKnown() {
		if own.Get(capability.BOUNDING, c) && own.Get(capability.PERMITTED, c) {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	slices.Sort(names)
	return names, nil
}

func detectCgroups(h *Host) {
	const root = "/sys/fs/cgroup"
	h.Cgroup, h.Controllers = 1, map[string]bool{}
	var fs unix.Statfs_t
	if unix.Statfs(root, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		h.Cgroup = 2
	}
	if h.Cgroup == 2 {
		for name := range strings.FieldsSeq(readLine(root + "/cgroup.controllers")) {
			h.Controllers[name] = true
		}
		h.Controllers["devices"], h.Controllers["freezer"] = true, true
		// The root has no limits of its own; swap accounting shows in any child.
		found, _ := filepath.Glob(root + "/*/memory.swap.max")
		_, err := os.Stat("/proc/swaps")
		h.Swap = len(found) > 0 || err == nil
		h.BlkioWeight = h.Controllers["io"]
	} else {
		entries, _ := os.ReadDir(root)
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join(root, e.Name(), "cgroup.procs")); err == nil {
				h.Controllers[e.Name()] = true
			}
		}
		h.Controllers["io"] = h.Controllers["blkio"]
		h.Swap = exists(root + "/memory/memory.memsw.limit_in_bytes")
		h.BlkioWeight = exists(root+"/blkio/blkio.weight") || exists(root+"/blkio/blkio.bfq.weight")
	}
	h.CPUs = firstList(root+"/cpuset/cpuset.cpus", root+"/cpuset.cpus.effective", "/sys/devices/system/cpu/online")
	h.Mems = firstList(root+"/cpuset/cpuset.mems", root+"/cpuset.mems.effective", "/sys/devices/system/node/online")
}

// firstList reads the first of the files that holds a list such as 0-3,7.
func firstList(files ...string) []int {
	for _, f := range files {
		if list, err := parseList(readLine(f)); err == nil && len(list) > 0 {
			return list
		}
	}
	return []int{0}
}

// findInit looks for a program that is made to be process 1 and needs
// nothing of the image: it must be static.
func findInit() string {
	for _, path := range []string{
		"/usr/libexec/docker/docker-init", "/usr/bin/docker-init", "/usr/local/bin/docker-init",
		"/usr/bin/tini-static", "/usr/libexec/podman/catatonit", "/usr/bin/catatonit",
		"/usr/local/bin/tini", "/usr/bin/tini", "/sbin/tini", "/usr/bin/dumb-init",
	} {
		if isStatic(path) {
			return path
		}
	}
	return ""
}

func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// findRemap takes the ids that the administrator set aside for "berth" in
// /etc/subuid and /etc/subgid, or else a range that useradd and
// systemd-nspawn leave alone.
func findRemap() Idmap {
	const fallback, size = 0x70000000, 65536
	first := func(file string) []specs.LinuxIDMapping {
		ids, err := user.ParseSubIDFileFilter(file, func(s user.SubID) bool { return s.Name == "berth" })
		if err != nil || len(ids) == 0 || ids[0].Count < size || ids[0].SubID <= 0 {
			return []specs.LinuxIDMapping{{HostID: fallback, Size: size}}
		}
		return []specs.LinuxIDMapping{{HostID: uint32(ids[0].SubID), Size: size}}
	}
	return Idmap{UIDs: first("/etc/subuid"), GIDs: first("/etc/subgid")}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

func readLine(path string) string {
	data, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

// statusLine is one line of /proc/self/status.
func statusLine(key string) (string, bool) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return "", false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, _ := strings.Cut(s.Text(), ":"); k == key {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}
