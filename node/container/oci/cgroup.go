package oci

import (
	"context"
	"encoding/json"
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

// group is a container's cgroup and what is below it, without the cgroups of
// other containers: clients may put one into another's.
type group struct {
	path   string
	except []string
}

// own is the group of a container. Others are looked for only where the path
// does not tell that it is this container's alone.
func (r *Runtime) own(id string, b bundle) group {
	g := group{path: b.cgroup()}
	_, name, spaced := strings.Cut(id, "+") // without its namespace
	if base := filepath.Base(g.path); filepath.Dir(g.path) != "/" && (base == id || spaced && base == name) {
		return g
	}
	entries, _ := os.ReadDir(filepath.Join(r.state, ".bundle"))
	for _, e := range entries {
		if e.Name() == id {
			continue
		}
		var other bundle
		data, err := os.ReadFile(filepath.Join(r.record(e.Name()), "config.json"))
		if err == nil && json.Unmarshal(data, &other) == nil && within(other.cgroup(), g.path) {
			g.except = append(g.except, other.cgroup())
		}
	}
	return g
}

// shared: another container is in the very same cgroup.
func (g group) shared() bool { return slices.Contains(g.except, g.path) }

func (g group) holds(cgroup string) bool {
	return within(cgroup, g.path) && !slices.ContainsFunc(g.except, func(other string) bool { return within(cgroup, other) })
}

func within(cgroup, tree string) bool {
	return cgroup == tree || strings.HasPrefix(cgroup, tree+"/")
}

// processes lists those of the group in one hierarchy.
func (g group) processesIn(root string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(filepath.Join(root, g.path), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.IsDir() {
			return err
		}
		if !g.holds(strings.TrimPrefix(path, root)) {
			return filepath.SkipDir
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

// processes lists those of the group in any hierarchy: a runtime that was
// killed may have moved a process into some of them only.
func (g group) processes() ([]int, error) {
	var all []int
	for _, root := range hierarchies() {
		pids, err := g.processesIn(root)
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// signalAll sends sig to every process of the group, and to nobody else:
// membership is asked once more after a descriptor holds the process, so that
// a recycled number hits no stranger.
func signalAll(g group, sig unix.Signal) (sent int, err error) {
	pids, err := g.processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		fd, openErr := unix.PidfdOpen(pid, 0)
		if openErr != nil {
			continue // ended
		}
		if g.belongs(pid) {
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

func (g group) belongs(pid int) bool {
	data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && g.holds(parts[2]) {
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
	asked := 0
	err := poll(ctx, func() (bool, error) {
		ok, err := done()
		if err == nil && !ok && !unified() {
			asked++
			err = freezeAgain(file, word, asked)
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

// freezeAgain is for version 1, which wants to be asked again about processes
// that were forking, and now and then to begin anew: else some stay on their way
// to being frozen for ever.
func freezeAgain(file, word string, asked int) error {
	if word == "FROZEN" && asked%12 == 0 {
		if err := os.WriteFile(file, []byte("THAWED"), 0); err != nil {
			return err
		}
	}
	return os.WriteFile(file, []byte(word), 0)
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

// removeCgroup ends every process of a group and removes its cgroups from
// every hierarchy.
func removeCgroup(ctx context.Context, g group) error {
	if g.path == "/" || gone(g) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		killAll(g)
		return gone(g), nil
	})
	if err == nil {
		return nil
	}
	pids, _ := g.processes()
	return errs.New(errs.Timeout, "cgroup %s: processes %v do not end: %w", g.path, pids, err)
}

// gone removes what can be removed and tells whether that was all. A tree
// with processes cannot be.
func gone(g group) bool {
	all := true
	for _, root := range hierarchies() {
		if !g.removeTree(root, g.path) {
			all = false
		}
	}
	return all
}

// removeTree removes a cgroup of one hierarchy, children first only where
// there are any. What is others' stays, and what is above it.
func (g group) removeTree(root, cgroup string) bool {
	if !g.holds(cgroup) {
		return true
	}
	dir := filepath.Join(root, cgroup)
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return true
	}
	entries, _ := os.ReadDir(dir)
	children, all := false, true
	for _, e := range entries {
		if e.IsDir() {
			children = true
			all = g.removeTree(root, filepath.Join(cgroup, e.Name())) && all
		}
	}
	if children && unix.Rmdir(dir) == nil {
		return true
	}
	if len(g.except) == 0 {
		return false
	}
	left, err := group{path: cgroup, except: g.except}.processesIn(root)
	return all && err == nil && len(left) == 0
}

// killAll kills what is in the group. What fails shows in what is left.
func killAll(g group) {
	if len(g.except) > 0 {
		_, _ = signalAll(g, unix.SIGKILL)
		return
	}
	if unified() {
		if os.WriteFile(filepath.Join(cgroupRoot, g.path, "cgroup.kill"), []byte("1"), 0) == nil {
			return
		}
	}
	// Version 1 has no single stroke: freeze, so that nothing forks away from
	// under the list, kill, and thaw, since the frozen do not die.
	state := filepath.Join(cgroupRoot, "freezer", g.path, "freezer.state")
	_ = os.WriteFile(state, []byte("FROZEN"), 0)
	_, _ = signalAll(g, unix.SIGKILL)
	_ = os.WriteFile(state, []byte("THAWED"), 0)
}
