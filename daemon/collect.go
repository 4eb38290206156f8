package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	"berth/node/collect"
)

// collect removes what a crash of an earlier node left and nobody claims,
// with the door open meanwhile. Then, and whenever a container has gone, it takes
// away the layers and blobs that nothing stands on.
func (n *node) collect(ctx context.Context) error {
	rooms := []collect.Room{}
	for name, runtime := range n.runtimes.byName { // first: this ends processes
		rooms = append(rooms, collect.Room{
			Name: "runtime " + name, Found: collect.Names(filepath.Join(n.runtimeState(), name)), Discard: runtime.Delete,
		})
	}
	rooms = append(rooms,
		collect.Room{Name: "container", Found: n.containers.Found, Discard: n.containers.Discard},
		collect.Room{
			Name:    "network",
			Found:   func(context.Context) ([]string, error) { return n.networks.Claims(), nil },
			Discard: n.discardNetworking,
		},
		collect.Mounts(filepath.Join(n.config.State, "containers")),
		collect.Room{
			Name: "checkpoint", Found: collect.Names(n.checkpointsUsed()),
			Discard: func(_ context.Context, id string) error { return os.RemoveAll(filepath.Join(n.checkpointsUsed(), id)) },
		},
		collect.Cgroups(n.cgroup()),
	)
	_, err := collect.Sweep(ctx, n.claims, n.log.With("room", "collect"), rooms...)
	if err != nil {
		n.log.WarnContext(ctx, "some leftovers of a crash stay", "err", err)
	}
	n.wakeCollector() // an earlier node may have been about to
	for {
		select {
		case <-n.freed:
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := n.images.Collect(ctx); err != nil {
			n.log.WarnContext(ctx, "not all unused layers were collected", "err", err)
		}
	}
}

// containerGone has what only a container needed collected. What its client made
// for it nothing refers to any more.
func (n *node) containerGone(given bool) {
	n.wakeCollector()
	if given {
		n.engine.leases.Trigger()
	}
}

func (n *node) wakeCollector() {
	select {
	case n.freed <- struct{}{}:
	default: // it has yet to look
	}
}

// runtimeState is where runtime programs keep their records, each in a folder
// of its name.
func (n *node) runtimeState() string { return filepath.Join(n.config.State, "runtime") }

func (n *node) discardNetworking(ctx context.Context, id string) error {
	if err := n.networks.Detach(ctx, id); err != nil {
		return err
	}
	return n.networks.RemoveNamespace(ctx, id)
}

// cgroup is where the node's containers are, in each hierarchy: /berth, and a
// name of its own for a node in other folders, so that several on one machine
// do not sweep each other's.
func (n *node) cgroup() string {
	if n.config.State == DefaultState {
		return "/berth"
	}
	sum := sha256.Sum256([]byte(n.config.State))
	return "/berth-" + hex.EncodeToString(sum[:4])
}
