package keeper

import (
	"bufio"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// protect makes the process hard to hit, and the parent of what it starts.
// It returns the signals it catches. They are caught and not ignored,
// because ignored ones would stay ignored in every container.
func (s *server) protect() chan os.Signal {
	signals := make(chan os.Signal, 1) // one SIGCHLD stands for any number
	signal.Notify(signals, unix.SIGCHLD)
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE} {
		signal.Notify(make(chan os.Signal, 1), sig) // never read: dropped
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		s.log.Error("not a subreaper: exit codes will be unknown", slog.Any("err", err))
	}
	s.lowerOOM()
	if s.config.Cgroup != "" {
		s.moveCgroup(s.config.Cgroup)
	}
	return signals
}

// lowerOOM makes the kernel spare the keeper as far as we may ask for it.
// What it starts gets the old value back, see restoreOOM.
func (s *server) lowerOOM() {
	const own = "/proc/self/oom_score_adj"
	old, err := os.ReadFile(own)
	if err != nil {
		return
	}
	s.oom = strings.TrimSpace(string(old))
	if kept, ok := os.LookupEnv(oomEnv); ok { // upgraded: ours is low already
		s.oom = kept
	}
	_ = os.Setenv(oomEnv, s.oom)
	current, _ := strconv.Atoi(s.oom)
	for _, adj := range []int{-999, -500, -100, 0} {
		if adj < current && os.WriteFile(own, []byte(strconv.Itoa(adj)), 0) == nil {
			return
		}
	}
}

const oomEnv = "BERTH_KEEPER_OOM"

// restoreOOM keeps the keeper's privilege from its descendants.
func (s *server) restoreOOM(pid int) {
	if s.oom != "" {
		_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(s.oom), 0)
	}
}

// moveCgroup leaves node's cgroup, so that stopping node by its cgroup
// (as systemd does) does not stop the keeper. Best effort in each hierarchy.
func (s *server) moveCgroup(name string) {
	mounts, err := cgroupMounts()
	if err != nil {
		s.log.Warn("stay in node's cgroup", slog.Any("err", err))
		return
	}
	for _, mount := range mounts {
		dir := filepath.Join(mount, name)
		err := os.Mkdir(dir, 0o755)
		if err == nil || errors.Is(err, os.ErrExist) {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
		}
		if err != nil {
			s.log.Debug("stay in node's cgroup", slog.String("hierarchy", mount), slog.Any("err", err))
		}
	}
}

func cgroupMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup") {
			mounts = append(mounts, fields[4])
		}
	}
	return mounts, lines.Err()
}

// fdOf returns the descriptor itself; File.Fd would make it blocking.
func fdOf(c syscall.Conn) int {
	fd := -1
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}
