package oci

import (
	"cmp"
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
	b, err := r.bundle(id)
	if err != nil {
		return err
	}
	if b.program.foreign {
		args := []string{"kill", b.id(id), strconv.Itoa(int(sig))}
		if all {
			args = []string{"kill", "--all", b.id(id), strconv.Itoa(int(sig))}
		}
		return b.program.run(ctx, nil, args...)
	}
	if own := r.own(id, b); all && !own.shared() {
		sent, err := signalAll(own, sig)
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
	b, err := r.bundle(id)
	if err != nil {
		return err
	}
	if b.program.foreign {
		if frozen {
			return b.program.run(ctx, nil, "pause", b.id(id))
		}
		return b.program.run(ctx, nil, "resume", b.id(id))
	}
	if err := freeze(ctx, b.cgroup(), frozen); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}

// Update sets limits of a running container.
func (r *Runtime) Update(ctx context.Context, id string, limits *specs.LinuxResources) error {
	b, err := r.bundle(id)
	if err != nil {
		return err
	}
	data, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	return b.program.run(ctx, data, "update", "--resources", "-", b.id(id))
}

// Pids are the processes of the container, as the host numbers them. Of one
// that has its own kernel that is the process that runs it.
func (r *Runtime) Pids(ctx context.Context, id string) ([]int, error) {
	b, err := r.bundle(id)
	if err != nil {
		return nil, err
	}
	if b.choice.Systemd {
		return b.program.pids(ctx, b.id(id))
	}
	pids, err := r.own(id, b).processes()
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", id, err)
	}
	if p, found := r.keeper.Process(id); b.program.foreign && len(pids) == 0 && found {
		pids = []int{p.Pid}
	}
	return pids, nil
}

// pids asks the program.
func (p *program) pids(ctx context.Context, id string) (pids []int, err error) {
	out, err := p.output(ctx, nil, "ps", "--format", "json", id)
	if err == nil {
		err = json.Unmarshal(out, &pids)
	}
	return pids, err
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
	if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) {
		return err
	}
	known := err == nil
	if err := r.endLaunch(ctx, id, true); err != nil {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	if !known {
		if b.program, err = r.program(b.choice); err != nil {
			b.program = r.usual
		}
	}
	records := b.program.records(b.id(id))
	if known && b.program.foreign || (b.Hooks.Poststop != nil || !known) && exists(records) {
		if err := b.program.run(ctx, nil, "delete", "--force", b.id(id)); err != nil && !errors.Is(err, errs.NotFound) && b.program.foreign {
			return err
		}
	}
	if !b.choice.Systemd && b.Linux.CgroupsPath != "" {
		own := r.own(id, b)
		if own.shared() {
			_ = r.keeper.Signal(id, syscall.SIGKILL) // it may have ended
		}
		if err := removeCgroup(ctx, own); err != nil {
			return fmt.Errorf("delete %s: %w", id, err)
		}
	}
	for _, name := range []string{records, r.choice(id)} {
		if err := os.RemoveAll(name); err != nil {
			return fmt.Errorf("delete %s: %w", id, err)
		}
	}
	if err := os.Remove(r.record(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	r.mu.Lock()
	delete(r.bundles, id)
	r.mu.Unlock()
	return nil
}

// A bundle is what has to be known of a container: of its config.json, and of
// what its client has chosen.
type bundle struct {
	Linux struct{ CgroupsPath string }
	Hooks struct {
		Poststart, Poststop []json.RawMessage
	}
	choice  choice
	program *program
}

// id is the container's name for the program.
func (b bundle) id(id string) string { return cmp.Or(b.choice.ID, id) }

func (b bundle) cgroup() string { return filepath.Clean("/" + b.Linux.CgroupsPath) }

// bundle reads the container's config.json, once.
func (r *Runtime) bundle(id string) (bundle, error) {
	r.mu.Lock()
	b, known := r.bundles[id]
	r.mu.Unlock()
	if known {
		return b, nil
	}
	var err error
	if b.choice, err = readChoice(r.choice(id)); err != nil {
		return b, fmt.Errorf("runtime %s: %s: %w", r.name, id, err)
	}
	data, err := os.ReadFile(filepath.Join(r.record(id), "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return b, errs.New(errs.NotFound, "runtime %s: there is no container %s", r.name, id)
	}
	if err != nil {
		return b, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	return r.learn(id, b.choice, data)
}

// learn keeps what is known of a container.
func (r *Runtime) learn(id string, c choice, config []byte) (b bundle, err error) {
	if err := json.Unmarshal(config, &b); err != nil {
		return b, errs.New(errs.Invalid, "runtime %s: bundle of %s: %w", r.name, id, err)
	}
	b.choice = c
	if b.program, err = r.program(c); err != nil {
		return b, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bundles[id] = b
	return b, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
