package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the roots of the machine's cgroup trees: one on version 2;
// one for each controller on version 1, and those without a controller.
func hierarchies() []string {
	if unified() {
		return []string{cgroupRoot}
	}
	entries, _ := os.ReadDir(cgroupRoot)
	var roots []string
	for _, e := range entries {
		if e.IsDir() { // links stand for controllers that share a tree
			roots = append(roots, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return roots
}

func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// processes lists those in a cgroup of one hierarchy and below it.
func processes(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// allProcesses lists those in a cgroup in any hierarchy: a runtime that was
// killed may have moved a process into some of them only.
func allProcesses(cgroup string) ([]int, error) {
	var all []int
	for _, root := range hierarchies() {
		pids, err := processes(filepath.Join(root, cgroup))
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// signalAll sends sig to every process in the cgroup, and to nobody else:
// membership is asked once more after a descriptor holds the process, so that
// a recycled number hits no stranger.
func signalAll(cgroup string, sig unix.Signal) (sent int, err error) {
	pids, err := allProcesses(cgroup)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		fd, openErr := unix.PidfdOpen(pid, 0)
		if openErr != nil {
			continue // ended
		}
		if belongs(pid, cgroup) {
			if e := unix.PidfdSendSignal(fd, sig, nil, 0); e == nil {
				sent++
			} else if !errors.Is(e, unix.ESRCH) {
				err = errors.Join(err, fmt.Errorf("signal process %d: %w", pid, e))
			}
		}
		err = errors.Join(err, unix.Close(fd))
	}
	return sent, err
}

func belongs(pid int, cgroup string) bool {
	data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && (parts[2] == cgroup || strings.HasPrefix(parts[2], cgroup+"/")) {
			return true
		}
	}
	return false
}

// freeze stops every process of the cgroup, or lets them go on, and waits
// until that is so. It is what runc and crun do and what they ask for the
// state of a container, so all agree.
func freeze(ctx context.Context, cgroup string, frozen bool) error {
	file, word := filepath.Join(cgroupRoot, "freezer", cgroup, "freezer.state"), "THAWED"
	if frozen {
		word = "FROZEN"
	}
	done := func() (bool, error) {
		data, err := os.ReadFile(file)
		return strings.TrimSpace(string(data)) == word, err
	}
	if unified() {
		file, word = filepath.Join(cgroupRoot, cgroup, "cgroup.freeze"), "0"
		if frozen {
			word = "1"
		}
		done = func() (bool, error) {
			data, err := os.ReadFile(filepath.Join(cgroupRoot, cgroup, "cgroup.events"))
			return strings.Contains(string(data), "frozen "+word), err
		}
	}
	if err := os.WriteFile(file, []byte(word), 0); err != nil {
		return freezeError(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		ok, err := done()
		if err == nil && !ok && !unified() {
			err = os.WriteFile(file, []byte(word), 0) // version 1 wants to be asked again about processes that were forking
		}
		return ok, err
	})
	if err != nil && frozen {
		undone := "THAWED"
		if unified() {
			undone = "0"
		}
		err = errors.Join(err, os.WriteFile(file, []byte(undone), 0))
	}
	return freezeError(err)
}

func freezeError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return errs.New(errs.NotFound, "freeze: the container does not run")
	}
	return err
}

// poll asks until the answer is yes: soon at first, then every 20 ms.
func poll(ctx context.Context, ask func() (bool, error)) error {
	wait := 200 * time.Microsecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		select {
		case <-timer.C:
			wait = min(2*wait, 20*time.Millisecond)
			timer.Reset(wait)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// removeCgroup ends every process of a cgroup and removes it, with those
// below it, from every hierarchy.
func removeCgroup(ctx context.Context, cgroup string) error {
	cgroup = filepath.Clean("/" + cgroup)
	if cgroup == "/" {
		return nil
	}
	if gone(cgroup) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		killAll(cgroup)
		return gone(cgroup), nil
	})
	if err == nil {
		return nil
	}
	pids, _ := allProcesses(cgroup)
	return errs.New(errs.Timeout, "cgroup %s: processes %v do not end: %w", cgroup, pids, err)
}

// gone removes what can be removed and tells whether that was all. A tree
// with processes cannot be.
func gone(cgroup string) bool {
	all := true
	for _, root := range hierarchies() {
		if !removeTree(filepath.Join(root, cgroup)) {
			all = false
		}
	}
	return all
}

// removeTree removes a cgroup of one hierarchy, children first only where
// there are any.
func removeTree(dir string) bool {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return true
	}
	entries, _ := os.ReadDir(dir)
	children := false
	for _, e := range entries {
		if e.IsDir() {
			children = true
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	return children && unix.Rmdir(dir) == nil
}

// killAll kills what is in the cgroup. What fails shows in what is left.
func killAll(cgroup string) {
	if unified() {
		if os.WriteFile(filepath.Join(cgroupRoot, cgroup, "cgroup.kill"), []byte("1"), 0) == nil {
			return
		}
	}
	// Version 1 has no single stroke: freeze, so that nothing forks away from
	// under the list, kill, and thaw, since the frozen do not die.
	state := filepath.Join(cgroupRoot, "freezer", cgroup, "freezer.state")
	_ = os.WriteFile(state, []byte("FROZEN"), 0)
	_, _ = signalAll(cgroup, unix.SIGKILL)
	_ = os.WriteFile(state, []byte("THAWED"), 0)
}
