// Package oci runs containers with any OCI runtime program: runc, crun, and
// those that the configuration names.
package oci

import (
	"context"
	"log/slog"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/keeper"
)

// Config describes one runtime program.
type Config struct {
	Name string   // what --runtime takes
	Path string   // of the program; Name, looked up in PATH, when empty
	Args []string // before the subcommand, such as --platform=ptrace
	// State is the folder <state>/runtime: the program keeps its records in
	// the folder Name in it.
	State  string
	Keeper Keeper
	Log    *slog.Logger
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
type Runtime struct{ config Config }

var _ container.Runtime = (*Runtime)(nil)

// New makes the driver of a runtime program. errs.NotFound: it is not there.
func New(c Config) (*Runtime, error) { return nil, errs.Unsupported }

// Name is what --runtime takes.
func (r *Runtime) Name() string { return r.config.Name }

func (r *Runtime) Version(ctx context.Context) (string, error) { return "", errs.Unsupported }
func (r *Runtime) Run(ctx context.Context, l container.Launch) (*container.Process, error) {
	return nil, errs.Unsupported
}
func (r *Runtime) Create(ctx context.Context, l container.Launch) (*container.Process, error) {
	return nil, errs.Unsupported
}
func (r *Runtime) Start(ctx context.Context, id string) error { return errs.Unsupported }
func (r *Runtime) Exec(ctx context.Context, l container.ExecLaunch) (*container.Process, error) {
	return nil, errs.Unsupported
}
func (r *Runtime) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return errs.Unsupported
}
func (r *Runtime) Pause(ctx context.Context, id string) error  { return errs.Unsupported }
func (r *Runtime) Resume(ctx context.Context, id string) error { return errs.Unsupported }
func (r *Runtime) Update(ctx context.Context, id string, res *specs.LinuxResources) error {
	return errs.Unsupported
}
func (r *Runtime) Delete(ctx context.Context, id string) error        { return errs.Unsupported }
func (r *Runtime) Pids(ctx context.Context, id string) ([]int, error) { return nil, errs.Unsupported }
