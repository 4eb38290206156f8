package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// endLaunch removes what a launch left. Where it was cut short, processes of
// the command may still be at work, in no cgroup yet: crun forks before it
// makes the container, and the child outlives a parent that is killed. They
// are known by their command line, which names the launch's folder, and are
// ended first.
func (r *Runtime) endLaunch(ctx context.Context, id string, cut bool) error {
	dir := r.launching(id)
	if !exists(dir) {
		return nil
	}
	if cut {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		// Twice: one that was listed may have left a child behind, as programs do
		// that detach, and have ended before it was looked at.
		if err := poll(ctx, func() (bool, error) { return killStragglers(dir)+killStragglers(dir) == 0, nil }); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// EndLaunches ends what an earlier node was launching when it died, and takes
// its files away: those who asked for it are gone. A container of which it
// got that far to make something is left to Delete. It has to be called before
// anything is launched.
func EndLaunches(ctx context.Context, state string) error {
	r := &Runtime{state: state}
	entries, err := os.ReadDir(filepath.Join(state, ".launch"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, r.endLaunch(ctx, e.Name(), true))
	}
	if err != nil {
		return fmt.Errorf("end what was being launched: %w", err)
	}
	return nil
}

// killStragglers kills the processes whose command line names a file in dir,
// and counts those that live.
func killStragglers(dir string) (alive int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !commandNames(pid, dir) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// Asked again: now the number cannot be another's.
		if commandNames(pid, dir) && !errors.Is(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0), unix.ESRCH) {
			alive++
		}
		_ = unix.Close(fd)
	}
	return alive
}

// commandNames is false for what has ended: a zombie has no command line.
func commandNames(pid int, dir string) bool {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && bytes.Contains(line, []byte("\x00"+dir+"/"))
}
