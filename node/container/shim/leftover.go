package shim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// killShim kills the process of a shim that does not end by itself.
func (d *Driver) killShim(s *shim, t *task) {
	d.mu.Lock()
	pid := s.pid
	d.mu.Unlock()
	if pid > 1 && (d.introduced(pid) || isProgram(pid, t.Binary)) {
		killPid(pid, func() bool { return d.introduced(pid) || isProgram(pid, t.Binary) })
	}
	d.killStrays(t)
}

// killStrays kills the processes of the shim's program that work in the
// container's folder: what a start that failed has left behind.
func (d *Driver) killStrays(t *task) {
	bundle, err := filepath.EvalSymlinks(t.Bundle)
	if err != nil {
		return
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		stray := func() bool {
			dir, err := os.Readlink(procfs(pid, "cwd"))
			return err == nil && dir == bundle && isProgram(pid, t.Binary)
		}
		if stray() {
			killPid(pid, stray)
		}
	}
}

// killPid kills a process, if it is still the one that is meant.
func killPid(pid int, still func() bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if still() {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(poll, 2000) // what it held is free when it has ended
	}
}

// isProgram says whether a process runs a program.
func isProgram(pid int, program string) bool {
	running, err := os.Stat(procfs(pid, "exe"))
	if err != nil {
		return false
	}
	file, err := os.Stat(program)
	return err == nil && os.SameFile(running, file)
}

// introduced says whether a process was started as a shim of this node: it has
// the variable that we give.
func (d *Driver) introduced(pid int) bool {
	environ, err := os.ReadFile(procfs(pid, "environ"))
	return err == nil && d.Events != "" && bytes.Contains(append([]byte{0}, environ...), []byte("\x00TTRPC_ADDRESS="+d.Events+"\x00"))
}

func procfs(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// removeSockets removes the sockets that a shim which was killed has left:
// the one it named, and those that shims make by custom.
func (d *Driver) removeSockets(ctx context.Context, t *task) {
	addresses := []string{t.snapshot().Endpoint.Address}
	for _, dir := range []string{d.Sockets, "/run/containerd/s"} {
		for _, kind := range []string{"", "debug"} {
			name := sha256.Sum256([]byte(filepath.Join(d.Address, t.Namespace, t.Group, kind)))
			addresses = append(addresses, fmt.Sprintf("unix://%s/%x", dir, name))
		}
	}
	for _, address := range addresses {
		removeSocket(ctx, address)
	}
}

// moveOut moves a shim out of the node's cgroups, where that is possible.
func (d *Driver) moveOut(ctx context.Context, s *shim, t *task) {
	d.mu.Lock()
	pid := s.pid
	d.mu.Unlock()
	if d.Cgroup == "" || pid <= 1 || !d.introduced(pid) && !isProgram(pid, t.Binary) {
		return
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup") {
			continue
		}
		dir := filepath.Join(fields[4], d.Cgroup)
		err := os.Mkdir(dir, 0o755)
		if err == nil || os.IsExist(err) {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
		if err != nil {
			d.Log.DebugContext(ctx, "a shim stays in the node's cgroup", "hierarchy", fields[4], "error", err)
		}
	}
}
