package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
)

// Signal sends sig to the container's first process, or to all of them.
func (r *Runtime) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	if r.foreign {
		args := []string{"kill", id, strconv.Itoa(int(sig))}
		if all {
			args = []string{"kill", "--all", id, strconv.Itoa(int(sig))}
		}
		return r.run(ctx, nil, args...)
	}
	b, err := r.bundle(id)
	if err != nil {
		return err
	}
	if all {
		sent, err := signalAll(b.cgroup(), sig)
		if err == nil && sent == 0 {
			err = errs.New(errs.NotFound, "container %s does not run", id)
		}
		if err != nil {
			return fmt.Errorf("signal: %w", err)
		}
	} else if err := r.keeper.Signal(id, sig); err != nil {
		return fmt.Errorf("signal: %w", err)
	}
	if sig == syscall.SIGKILL && !unified() {
		thaw(b.cgroup())
	}
	return nil
}

// thaw lets the frozen die: on version 1 they cannot while they are.
func thaw(cgroup string) {
	_ = os.WriteFile(filepath.Join(cgroupRoot, "freezer", cgroup, "freezer.state"), []byte("THAWED"), 0)
}

// Pause freezes every process of the container.
func (r *Runtime) Pause(ctx context.Context, id string) error { return r.freeze(ctx, id, true) }

// Resume thaws what Pause froze.
func (r *Runtime) Resume(ctx context.Context, id string) error { return r.freeze(ctx, id, false) }

func (r *Runtime) freeze(ctx context.Context, id string, frozen bool) error {
	if r.foreign {
		if frozen {
			return r.run(ctx, nil, "pause", id)
		}
		return r.run(ctx, nil, "resume", id)
	}
	b, err := r.bundle(id)
	if err != nil {
		return err
	}
	if err := freeze(ctx, b.cgroup(), frozen); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}

// Update sets limits of a running container.
func (r *Runtime) Update(ctx context.Context, id string, limits *specs.LinuxResources) error {
	if _, err := r.bundle(id); err != nil {
		return err
	}
	data, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	return r.run(ctx, data, "update", "--resources", "-", id)
}

// Pids are the processes of the container, as the host numbers them. Of one
// that has its own kernel that is the process that runs it.
func (r *Runtime) Pids(ctx context.Context, id string) ([]int, error) {
	b, err := r.bundle(id)
	if err != nil {
		return nil, err
	}
	pids, err := allProcesses(b.cgroup())
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", id, err)
	}
	if p, found := r.keeper.Process(id); r.foreign && len(pids) == 0 && found {
		pids = []int{p.Pid}
	}
	return pids, nil
}

// Delete ends what still runs, and removes the container's cgroups and the
// program's record of it.
//
// The program is not asked where that is all there is to do: what runc and
// crun remove is known, and what a killed one of them left they would not
// find. It is asked where it has hooks to run, and where it is Foreign.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if !validID(id) {
		return errs.New(errs.Invalid, "container id %q", id)
	}
	b, err := r.bundle(id)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	known := err == nil
	if err := r.endLaunch(ctx, id, true); err != nil {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	records := filepath.Join(r.root(), id)
	if known && r.foreign || (b.Hooks.Poststop != nil || !known) && exists(records) {
		if err := r.run(ctx, nil, "delete", "--force", id); err != nil && !errors.Is(err, errs.NotFound) && r.foreign {
			return err
		}
	}
	if known && b.Linux.CgroupsPath != "" {
		if err := removeCgroup(ctx, b.cgroup()); err != nil {
			return fmt.Errorf("delete %s: %w", id, err)
		}
	}
	if err := os.RemoveAll(records); err != nil {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	if err := os.Remove(r.record(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	r.mu.Lock()
	delete(r.bundles, id)
	r.mu.Unlock()
	return nil
}

// A bundle is what has to be known of a container's config.json.
type bundle struct {
	Linux struct{ CgroupsPath string }
	Hooks struct{ Poststop []json.RawMessage }
}

func (b bundle) cgroup() string { return filepath.Clean("/" + b.Linux.CgroupsPath) }

// bundle reads the container's config.json, once.
func (r *Runtime) bundle(id string) (bundle, error) {
	r.mu.Lock()
	b, known := r.bundles[id]
	r.mu.Unlock()
	if known {
		return b, nil
	}
	data, err := os.ReadFile(filepath.Join(r.record(id), "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return bundle{}, errs.New(errs.NotFound, "runtime %s: there is no container %s", r.name, id)
	}
	if err != nil {
		return bundle{}, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return bundle{}, fmt.Errorf("runtime %s: bundle of %s: %w", r.name, id, err)
	}
	r.mu.Lock()
	r.bundles[id] = b
	r.mu.Unlock()
	return b, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
