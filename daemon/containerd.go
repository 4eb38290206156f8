package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel"

	"berth/base/errs"
	"berth/face/containerd"
	bits "berth/face/containerd/content"
	"berth/face/containerd/diff"
	"berth/face/containerd/events"
	"berth/face/containerd/mounts"
	"berth/face/containerd/snapshots"
	"berth/face/containerd/streaming"
	"berth/face/containerd/tasks"
	"berth/face/containerd/transfer"
	"berth/node/container"
	"berth/node/container/shim"
	"berth/node/content"
	"berth/node/lease"
	"berth/node/namespace"
	"berth/node/pod"
	"berth/node/sandbox"
	"berth/node/snapshot/rootfs"
	"berth/node/stats"
	"berth/spec"
)

// engine is what the node has for the clients of containerd, beyond what it has
// for its own.
type engine struct {
	exchange   *events.Exchange
	namespaces *namespace.Set
	leases     *lease.Set
	contents   *content.Set
	names      *snapshots.Service
	mounts     *mounts.Service
	teller     bits.Teller
	sandboxes  *sandbox.Set
	meter      *stats.Reader
	owners     []lease.Owner
}

// openEngine opens the rooms that only clients of containerd need.
func (n *node) openEngine(ctx context.Context) (err error) {
	n.engine.exchange = events.New(n.log.With("room", "events"))
	told := tasks.Told{Events: n.engine.exchange}
	n.bus.Tap(func(e spec.Event) { told.Tell(ctx, e) })
	if n.engine.meter, err = stats.Open(); err != nil {
		return err
	}
	if err := os.RemoveAll(n.checkpointsMade()); err != nil {
		return fmt.Errorf("checkpoints of an earlier node: %w", err)
	}
	if n.engine.namespaces, err = namespace.Open(ctx, n.db, n.holdings); err != nil {
		return err
	}
	n.engine.leases, err = lease.Open(lease.Config{
		DB: n.db, Freed: func(ctx context.Context) error { _, err := n.images.Collect(ctx); return err },
		Log: n.log.With("room", "lease"),
	})
	if err != nil {
		return err
	}
	n.engine.teller = bits.Teller{Events: n.engine.exchange}
	n.engine.contents, err = content.Open(content.Config{
		DB: n.db, Blobs: n.blobs, Leases: n.engine.leases, Namespaces: []string{spec.DefaultNamespace, pod.Namespace},
		Created: n.engine.teller.ContentCreated, Deleted: n.engine.teller.ContentDeleted,
		Log: n.log.With("room", "content"),
	})
	if err != nil {
		return err
	}
	n.own(n.engine.contents)
	if n.engine.sandboxes, err = sandbox.Open(n.db, n.boot); err != nil {
		return err
	}
	n.own(tasks.SandboxOwner{Set: n.engine.sandboxes})
	return nil
}

// openSnapshotNames gives clients names for what is in the store of layers.
func (n *node) openSnapshotNames(ctx context.Context) error {
	dir := filepath.Join(n.config.State, "trees")
	trees, err := rootfs.Open(ctx, dir, n.snapshots)
	if err != nil {
		return err
	}
	n.engine.names, err = snapshots.Open(ctx, snapshots.Config{
		Store: n.snapshots, DB: n.db, Trees: trees, Log: n.log.With("room", "containerd"),
		Node: &snapshots.Node{Dir: dir, Names: n.snapshotterNames(), Layers: n.images, Leases: n.engine.leases, Events: n.engine.exchange},
	})
	if err != nil {
		return err
	}
	n.images.SetHolders(n.engine.names.LetGo)
	n.engine.contents.Natives = n.images
	n.own(n.images.Owner())
	n.own(snapshots.Collected{Service: n.engine.names})
	n.engine.mounts, err = mounts.Open(ctx, filepath.Join(n.config.State, "mounts"), n.engine.leases, n.log.With("room", "mounts"))
	if err != nil {
		return err
	}
	n.own(n.engine.mounts)
	n.onClose("mounts of clients", n.engine.mounts.Close)
	return nil
}

// own has the collector see to an owner's resources.
func (n *node) own(o lease.Owner) {
	n.engine.owners = append(n.engine.owners, o)
	n.engine.leases.Own(o)
}

// holdings says in words what is in a namespace. What has only begun to be
// written is nothing yet.
func (n *node) holdings(ctx context.Context, name string) ([]string, error) {
	var found []string
	for _, owner := range n.engine.owners {
		err := owner.Items(ctx, func(i lease.Item) {
			if what := inWords(i.Kind); i.Namespace == name && i.Kind != lease.Ingests && !slices.Contains(found, what) {
				found = append(found, what)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(found)
	return found, nil
}

func inWords(kind string) string {
	if snapshotter, ok := lease.Snapshotter(kind); ok {
		return fmt.Sprintf("snapshots on %q snapshotter", snapshotter)
	}
	if kind == "content" {
		return "blobs"
	}
	return kind
}

// services are those of containerd's protocol.
func (n *node) services() []containerd.Service {
	e := &n.engine
	held := bits.Config{Content: e.contents, Images: n.images, Leases: e.leases}
	stores := bits.NewStores(held)
	streams := streaming.New()
	log := n.log.With("room", "containerd")
	return append(n.kubeServices(),
		containerd.NewVersion(n.config.Version.Version, n.config.Version.Commit),
		&containerd.Introspection{ID: n.id, Root: n.config.Root, Snapshotters: n.snapshotters(), Runtime: n.describeRuntime},
		&containerd.Namespaces{Set: e.namespaces, Events: e.exchange, Leases: e.leases},
		events.NewService(e.exchange),
		bits.New(held),
		e.names, e.mounts, streams,
		diff.New(diff.Config{Content: stores.Content, Snapshots: e.names, MaxLayer: n.config.Registry.MaxLayerBytes, Log: log}),
		transfer.New(transfer.Config{
			Content: stores.Content, Images: stores.Images, Leases: stores.Leases, Streams: streams,
			Layers: n.images, Snapshots: e.names, Snapshotters: n.snapshotterNames(),
			HostDirs: n.certDirs(), Log: log,
		}),
		&tasks.Containers{Set: n.containers, Events: e.exchange, Leases: e.leases},
		&tasks.Sandboxes{Set: e.sandboxes, Events: e.exchange, Leases: e.leases, Plain: n.plain},
		&tasks.Tasks{
			Givens: n.containers, Running: n.containers, Controls: n.containers, Meter: e.meter,
			Contents: checkpoints{e.contents}, Mounts: e.mounts, Making: n.checkpointsMade(), Restored: n.checkpointsUsed(), Log: log,
		},
	)
}

// snapshotters are the names of the store: those that clients ask for, and its
// own.
func (n *node) snapshotters() []containerd.Snapshotter {
	var all []containerd.Snapshotter
	for _, name := range n.snapshotterNames() {
		all = append(all, containerd.Snapshotter{Name: name, Capabilities: []string{"rebase"}})
	}
	return all
}

func (n *node) snapshotterNames() []string {
	return []string{"overlayfs", n.storage.name, "native"}
}

// describeRuntime says what runs containers of a runtime's name.
func (n *node) describeRuntime(ctx context.Context, name string) (version string, features []byte, err error) {
	if name == container.RuntimeV2 || formerly[name] {
		name = n.runtimes.usual
	}
	r, ok := n.runtimes.byName[name]
	if !ok {
		_, err = shim.Find(name)
		return "", nil, err
	}
	if version, err = r.Version(ctx); err != nil {
		return "", nil, err
	}
	if says, ok := r.(featured); ok {
		features, err = says.Features(ctx)
	}
	if errs.KindOf(err) == errs.Unsupported {
		err = nil // it says nothing
	}
	return version, features, err
}

// plain says whether containers of a runtime are processes of this machine that
// the node starts by itself.
func (n *node) plain(name string) bool {
	_, here := n.runtimes.byName[name]
	return here || formerly[name] || name == container.RuntimeV2 || name == ""
}

// serveGRPC answers clients of containerd.
func (n *node) serveGRPC(ctx context.Context, listener net.Listener) error {
	server := containerd.Server{Namespaces: n.engine.namespaces, Ended: n.metrics.cri.ended, Log: n.log.With("room", "containerd")}
	if n.config.OTLP != "" {
		server.Tracer = otel.Tracer("berth/face/containerd")
	}
	return server.Serve(ctx, listener, n.services()...)
}

// checkpointsMade is where checkpoints lie until they are blobs.
func (n *node) checkpointsMade() string { return filepath.Join(n.config.Root, "checkpoint", "new") }

// checkpointsUsed is where those lie that tasks have gone on from.
func (n *node) checkpointsUsed() string { return filepath.Join(n.config.Root, "checkpoint", "used") }

// checkpoints are blobs that tasks are written to.
type checkpoints struct{ contents *content.Set }

// Open implements tasks.Contents.
func (c checkpoints) Open(ctx context.Context, namespace, of string) (io.ReadCloser, error) {
	d, err := digest.Parse(of)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%q: %w", of, err)
	}
	return c.contents.Open(ctx, namespace, d)
}

// Add implements tasks.Contents.
func (c checkpoints) Add(ctx context.Context, namespace, leased, name string, r io.Reader) (string, int64, error) {
	w, err := c.contents.Writer(ctx, namespace, content.WriteRequest{Ref: name, Lease: leased})
	if err != nil {
		return "", 0, err
	}
	defer w.Close()
	if _, err := io.Copy(writer{ctx, w}, r); err != nil {
		return "", 0, errors.Join(err, c.contents.Abort(context.WithoutCancel(ctx), namespace, leased, name))
	}
	of, size := w.Digest(), w.Status().Offset
	_, err = w.Commit(ctx, size, of, nil)
	if errs.KindOf(err) == errs.Exists {
		err = nil
	}
	return of.String(), size, err
}

// writer is a content.Writer for one call.
type writer struct {
	ctx context.Context //nolint:containedctx // io.Writer has none
	w   *content.Writer
}

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) { return w.w.Write(w.ctx, p) }
