package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine says on what, when and of what the run was.
func machine(ctx context.Context, s settings) string {
	var name unix.Utsname
	_ = unix.Uname(&name)
	load, _ := os.ReadFile("/proc/loadavg")
	memory, _ := os.ReadFile("/proc/meminfo")
	total := strings.Fields(string(memory))
	var gib float64
	if len(total) > 1 {
		_, _ = fmt.Sscan(total[1], &gib)
	}
	peer := filepath.Join(s.peerDir, "containerd")
	return fmt.Sprintf("%s; Linux %s, %d CPUs (%s), %.0f GiB; load at start %s\nBerth: %s; containerd: %s; runtime: %s, of pods %s; ext4 on a loop device",
		time.Now().UTC().Format("2006-01-02 15:04 UTC"), unix.ByteSliceToString(name.Release[:]), runtime.NumCPU(), processor(), gib/(1<<20),
		strings.Join(strings.Fields(string(load))[:3], " "), version(ctx, s.berth, "version"), version(ctx, peer, "--version"), version(ctx, s.runtime, "--version"), version(ctx, s.podRuntime, "--version"))
}

func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// version is the first line of what the program says of itself.
func version(ctx context.Context, program, verb string) string {
	out, err := output(ctx, nil, program, verb)
	if err != nil {
		return "not there"
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first
}
