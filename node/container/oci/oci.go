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
// A bundle may be anybody's: config.json is read only for what has to be known,
// and written to only where the program would not take it, or would choose the
// cgroup by itself.
//
//	<state>/<runtime>/<id>/   the program's own records (--root); of containers
//	                          in a client's namespace <runtime>+<namespace>
//	<state>/.bundle/<id>      link to the container's bundle
//	<state>/.choice/<id>      what a client wants otherwise than usual
//	<state>/.launch/<id>/     files of a command that leaves a process; there
//	                          as long as it is not known to be over
package oci

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

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
	// Timeout is how long one command of the program may take; two minutes
	// when 0.
	Timeout time.Duration
}

// Keeper starts processes and owns them; *keeper.Keeper is one.
type Keeper interface {
	Launch(ctx context.Context, l keeper.Launch) (*keeper.Process, error)
	Process(id string) (*keeper.Process, bool)
	Signal(id string, sig syscall.Signal) error
	CloseStdin(ctx context.Context, id string) error
	CloseOutput(ctx context.Context, id string) error
}

// Runtime is one runtime program, and those that clients name in its place.
type Runtime struct {
	name   string
	state  string
	keeper Keeper
	usual  *program
	extra  []string // Config.Args
	haste  haste

	mu      sync.Mutex
	others  map[choice]*program
	bundles map[string]bundle // by container; read when first needed, kept until Delete
}

var (
	_ container.Runtime      = (*Runtime)(nil)
	_ container.Checkpointer = (*Runtime)(nil)
)

// New makes the driver of a runtime program, and its folders. errs.NotFound:
// the program is not there.
func New(c Config) (*Runtime, error) {
	if !programName.MatchString(c.Name) {
		return nil, errs.New(errs.Invalid, "runtime %q: not a name", c.Name)
	}
	path := c.Path
	if path == "" {
		path = c.Name
	}
	usual, err := newProgram(c.Name, path, filepath.Join(c.State, c.Name), c.Foreign, c.Args...)
	if err != nil {
		return nil, err
	}
	usual.timeout = cmp.Or(c.Timeout, usualTimeout)
	for _, dir := range []string{".bundle", ".launch", ".choice"} {
		if err := os.MkdirAll(filepath.Join(c.State, dir), 0o711); err != nil {
			return nil, fmt.Errorf("runtime %s: %w", c.Name, err)
		}
	}
	return &Runtime{
		name: c.Name, state: c.State, keeper: c.Keeper, usual: usual, extra: c.Args,
		others: map[choice]*program{}, bundles: map[string]bundle{},
	}, nil
}

// Name is what --runtime takes.
func (r *Runtime) Name() string { return r.name }

// Version asks the program for its version.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, r.usual.path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("runtime %s: version: %w", r.name, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if _, version, found := strings.Cut(line, "version "); found {
		return version, nil
	}
	return line, nil
}

func (r *Runtime) record(id string) string    { return filepath.Join(r.state, ".bundle", id) }
func (r *Runtime) choice(id string) string    { return filepath.Join(r.state, ".choice", id) }
func (r *Runtime) launching(id string) string { return filepath.Join(r.state, ".launch", id) }
