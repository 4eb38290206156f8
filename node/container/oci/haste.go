package oci

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// haste keeps the kernel ready to move processes into cgroups.
//
// The first move after some milliseconds without one waits for a grace period
// of RCU, ten milliseconds and more, in which nothing else happens: half of
// what it takes to start a container. Those that come soon after are as good as
// free. So we move ourselves to where we are, which changes nothing, while the
// runtime's program is still being loaded, and go on until it has done its own.
type haste struct {
	mu      sync.Mutex
	users   int
	running bool
	work    sync.WaitGroup // one goroutine at most, as long as there are users
}

// hasteStep is shorter than a grace period.
const hasteStep = 3 * time.Millisecond

// begin keeps the kernel ready until end is called.
func (h *haste) begin() (end func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.users++
	if !h.running {
		h.running = true
		h.work.Go(h.run)
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.users--
	}
}

func (h *haste) run() {
	file, err := os.OpenFile(ownProcs(), os.O_WRONLY, 0)
	if err == nil {
		defer file.Close()
	}
	step := time.NewTicker(hasteStep)
	defer step.Stop()
	for {
		if err == nil {
			_, err = file.WriteString("0")
		}
		h.mu.Lock()
		if h.users == 0 {
			h.running = false
			h.mu.Unlock()
			return
		}
		h.mu.Unlock()
		<-step.C
	}
}

// ownProcs is the list of processes of the cgroup that we are in; any hierarchy
// will do.
func ownProcs() string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		first, _, _ := strings.Cut(controllers, ",")
		if procs := filepath.Join(cgroupRoot, first, path, "cgroup.procs"); !strings.HasPrefix(first, "name=") && exists(procs) {
			return procs
		}
	}
	return ""
}

// Prepare is told that a container is about to be made.
func (r *Runtime) Prepare() { r.haste.begin()() }
