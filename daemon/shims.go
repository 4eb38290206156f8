package daemon

import (
	"context"
	"path/filepath"
	"syscall"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/container/shim"
	"berth/node/keeper"
)

// formerly are names of the runtime that is now container.RuntimeV2.
var formerly = map[string]bool{"io.containerd.runc.v1": true, "io.containerd.runtime.v1.linux": true}

// openShims prepares for runtimes that speak containerd's shim protocol. One is
// started when somebody asks for a container of its.
func (n *node) openShims(context.Context) (err error) {
	n.shims, err = shim.New(shim.Config{
		State: n.config.State, Address: n.config.Socket, Events: n.eventsSocket(), Sockets: filepath.Join(n.config.State, "s"),
		Exited: func(e container.Exit) { n.containers.Exited(e) },
		Log:    n.log.With("room", "shim"),
	})
	return err
}

// foreign finds the runtime of a name that no OCI runtime has. Names that the
// usual one had in old versions of containerd still stand for it.
func (n *node) foreign(_ context.Context, name string) (container.Runtime, error) {
	if formerly[name] {
		return n.runtimes.byName[n.runtimes.usual], nil
	}
	r, err := n.shims.Runtime(name)
	if err != nil {
		return nil, err // not a nil *shim.Runtime
	}
	return r, nil
}

// processes are those of the keeper, and those of shims.
type processes struct {
	keeper *keeper.Keeper
	shims  *shim.Driver
}

// Forget implements container.Processes.
func (p processes) Forget(ctx context.Context, id string) error {
	if p.shims.Has(id) {
		return p.shims.Forget(ctx, id)
	}
	return p.keeper.Forget(ctx, id)
}

// ReopenLog implements container.Processes.
func (p processes) ReopenLog(ctx context.Context, id string) error {
	if p.shims.Has(id) {
		return errs.New(errs.Unsupported, "the log of a shim's container stays where it is")
	}
	return p.keeper.ReopenLog(ctx, id)
}

// Signal implements container.Processes.
func (p processes) Signal(id string, sig syscall.Signal) error {
	if p.shims.Has(id) {
		return p.shims.Signal(id, sig)
	}
	return p.keeper.Signal(id, sig)
}

// SignalGroup implements container.Processes. What a shim's command has started
// is the shim's to know.
func (p processes) SignalGroup(id string, sig syscall.Signal) error {
	if p.shims.Has(id) {
		return p.shims.Signal(id, sig)
	}
	return p.keeper.SignalGroup(id, sig)
}
