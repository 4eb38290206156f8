// Package oci runs containers with any OCI runtime program: runc, crun, and
// those that the configuration names.
//
// Programs that leave a process behind are run by the keeper, which then
// owns that process; the others are run here. For runtimes whose containers
// are plain processes in plain cgroups, signals, freezing, lists and removal
// need no program at all: they are a few system calls. What this room knows
// about a container is one link, <state>/.bundle/<id>, made before the
// program is first run and removed last, so that Delete finds everything that
// a program killed half way through may have left.
//
//	<state>/<runtime>/<id>/   the program's own records (--root)
//	<state>/.bundle/<id>      link to the container's bundle
//	<state>/.launch/<id>/     files of a command that leaves a process; there
//	                          as long as it is not known to be over
package oci

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/keeper"
)

// Config describes one runtime program.
type Config struct {
	Name string   // what --runtime takes: runc, crun, runsc, …
	Path string   // of the program; Name, looked up in PATH, when empty
	Args []string // before the subcommand, such as --platform=ptrace
	// State is the folder <state>/runtime.
	State  string
	Keeper Keeper
	// Foreign is set for a runtime whose containers are not plain processes
	// in plain cgroups of this kernel, such as runsc: everything then goes
	// through the program.
	Foreign bool
}

// Keeper starts processes and owns them; *keeper.Keeper is one.
type Keeper interface {
	Launch(ctx context.Context, l keeper.Launch) (*keeper.Process, error)
	Process(id string) (*keeper.Process, bool)
	Signal(id string, sig syscall.Signal) error
	CloseStdin(ctx context.Context, id string) error
}

// Runtime is one runtime program.
type Runtime struct {
	name    string
	path    string
	args    []string // before every subcommand
	state   string
	keeper  Keeper
	foreign bool
	filters *filters

	mu      sync.Mutex
	bundles map[string]bundle // by container; read when first needed, kept until Delete
}

var _ container.Runtime = (*Runtime)(nil)

// New makes the driver of a runtime program, and its folders. errs.NotFound:
// the program is not there.
func New(c Config) (*Runtime, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`).MatchString(c.Name) {
		return nil, errs.New(errs.Invalid, "runtime %q: not a name", c.Name)
	}
	path := c.Path
	if path == "" {
		path = c.Name
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return nil, errs.New(errs.NotFound, "runtime %s: %w", c.Name, err)
	}
	r := &Runtime{
		name: c.Name, path: path, state: c.State, keeper: c.Keeper,
		foreign: c.Foreign, filters: newFilters(path), bundles: map[string]bundle{},
	}
	r.args = append([]string{"--root", r.root(), "--log-format", "json"}, c.Args...)
	if filepath.Base(path) == "crun" {
		r.args = append(r.args, "--cgroup-manager", "cgroupfs")
	}
	for _, dir := range []string{r.root(), filepath.Join(c.State, ".bundle"), filepath.Join(c.State, ".launch")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("runtime %s: %w", c.Name, err)
		}
	}
	return r, nil
}

// Name is what --runtime takes.
func (r *Runtime) Name() string { return r.name }

// Version asks the program for its version.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, r.path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("runtime %s: version: %w", r.name, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if _, version, found := strings.Cut(line, "version "); found {
		return version, nil
	}
	return line, nil
}

// Start lets the process of a created container go.
func (r *Runtime) Start(ctx context.Context, id string) error {
	return r.run(ctx, nil, "start", id)
}

// run runs one of the program's commands to its end.
func (r *Runtime) run(ctx context.Context, stdin []byte, args ...string) error {
	_, err := r.output(ctx, stdin, args...)
	return err
}

func (r *Runtime) root() string               { return filepath.Join(r.state, r.name) }
func (r *Runtime) record(id string) string    { return filepath.Join(r.state, ".bundle", id) }
func (r *Runtime) launching(id string) string { return filepath.Join(r.state, ".launch", id) }
