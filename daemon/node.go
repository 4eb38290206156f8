package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel"

	"berth/base/errs"
	"berth/base/group"
	"berth/base/heap"
	"berth/base/kv"
	"berth/face/containerd/tasks"
	"berth/face/rest"
	"berth/image/blob"
	"berth/image/remote"
	"berth/node/builder"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/container/oci"
	"berth/node/container/shim"
	"berth/node/event"
	"berth/node/image"
	"berth/node/keeper"
	"berth/node/network"
	"berth/node/pod"
	"berth/node/profile"
	"berth/node/snapshot"
	"berth/node/volume"
)

// rememberedEvents is how many events a late reader can still be told.
const rememberedEvents = 4096

// RunNode runs the node role until ctx is done. Containers go on after it.
func RunNode(ctx context.Context, config NodeConfig) (err error) {
	defer heap.Calm()()
	c, err := config.withFile()
	if err != nil {
		return err
	}
	log, err := newLogger(config.Log, c.LogLevel, c.LogFormat)
	if err != nil {
		return err
	}
	n := &node{config: c, log: log, started: time.Now(), freed: make(chan struct{}, 1)}
	defer func() { err = errors.Join(err, n.close()) }()
	return n.run(ctx)
}

// node is one machine's parts.
type node struct {
	config    NodeConfig
	log       *slog.Logger
	started   time.Time
	activated *net.UnixListener // nil where systemd does not listen for the node
	closers   []func() error    // in the order of opening
	freed     chan struct{}     // holds a token when a container has gone, and may have freed an image

	id         string // made up on the first start
	boot       string // which life of the state folder this is
	host       bundle.Host
	db         *kv.DB
	metrics    *metrics
	events     publisher
	bus        *event.Bus
	keeper     *keeper.Keeper
	deafen     func() // ends what reads from the keeper; nil before anybody does
	snapshots  snapshot.Store
	storage    choice        // of the driver of snapshots
	lazily     *image.Lazily // nil where images are whole before they are used
	profiles   *profile.Set  // nil with it
	images     *image.Set
	networks   *network.Set
	volumes    *volume.Set
	runtimes   *runtimes
	shims      *shim.Driver
	containers *container.Set
	pods       pods
	cri        kubernetes
	blobs      *blob.Store
	engine     engine
	builder    *builder.Builder
}

// onClose remembers what to do when the node ends, the newest first.
func (n *node) onClose(what string, fn func() error) {
	n.closers = append(n.closers, func() error {
		if err := fn(); err != nil {
			return fmt.Errorf("close %s: %w", what, err)
		}
		return nil
	})
}

func (n *node) close() error {
	var all []error
	for _, closer := range slices.Backward(n.closers) {
		all = append(all, closer())
	}
	return errors.Join(all...)
}

// run opens the rooms from the ground up, lets the containers of the last
// node find themselves again, sweeps what nobody claims, and only then opens
// the door.
func (n *node) run(ctx context.Context) (err error) {
	if n.activated, err = activated(n.config.Socket); err != nil {
		return err
	}
	if err := n.claimFolders(); err != nil {
		return err
	}
	stopTraces, err := startTraces(ctx, n.config.OTLP, n.config.otlpRatio(), n.log)
	if err != nil {
		return err
	}
	n.onClose("traces", func() error { stopTraces(ctx); return nil })
	if n.boot, err = bootOf(n.config.State); err != nil {
		return err
	}
	if n.host, err = bundle.Detect(); err != nil {
		return err
	}
	if why := n.host.WarnAppArmor(); why != "" {
		n.log.WarnContext(ctx, "containers of pods that name no AppArmor profile run without one", "why", why)
	}
	if n.db, err = kv.Open(filepath.Join(n.config.Root, "db", "berth.db")); err != nil {
		return err
	}
	n.onClose("records", n.db.Close)
	if n.id, err = identity(ctx, n.db); err != nil {
		return err
	}
	n.metrics = newMetrics(n.config.Version)
	n.bus = event.New(rememberedEvents)
	n.events = publisher{n.bus, n.metrics.events, n.containerGone}

	for _, open := range []func(context.Context) error{
		n.openKeeper, n.openSnapshots, n.openLazy, n.openBlobs, n.openEngine, n.openImages, n.openSnapshotNames,
		n.openNetworks, n.openVolumes, n.openRuntimes, n.openShims, n.openContainers, n.openPods, n.openCRI, n.openBuilder,
	} {
		if err := open(ctx); err != nil {
			return err
		}
	}

	n.hear(ctx)
	listener, err := n.openDoor(ctx)
	if err != nil {
		return err
	}
	told, err := n.openEvents(ctx)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	g := group.New(ctx)
	g.Go("shims", n.shims.Run)
	n.engine.leases.Trigger() // the last node may have ended before it collected
	g.Go("leases", n.engine.leases.Run)
	g.Go("keeper", func(ctx context.Context) error { n.upgradeKeeper(ctx); return n.holdDoor(ctx, listener) })
	g.Go("network", n.networks.Run)
	g.Go("namespaces", n.pods.namespaces.Run)
	g.Go("pods", n.pods.set.Run)
	g.Go("plugins", n.runPlugins)
	g.Go("seccomp", n.pods.watcher.Run)
	g.Go("cri", n.runCRI)
	g.Go("streams", n.runStreams)
	g.Go("collect", n.collect)
	g.Go("scrub", func(ctx context.Context) error { return n.images.ScrubEvery(ctx, n.config.Storage.scrubDays()) })
	g.Go("builder", n.builder.Run)
	g.Go("runtime events", func(ctx context.Context) error { return n.serveEvents(ctx, told) })
	g.Go("door", func(ctx context.Context) error { return newDoor(listener).run(ctx, n.serve, n.serveGRPC) })
	n.log.InfoContext(ctx, "node is serving", "socket", n.config.Socket, "after", time.Since(n.started).Round(time.Millisecond).String())
	if err := tellSystemd(ctx, "READY=1"); err != nil {
		n.log.WarnContext(ctx, "systemd does not know that the node is ready", "err", err)
	}
	if n.config.Ready != nil {
		ready := Readiness{NodeConfig: n.config, Snapshotter: n.storage.name, KeeperPid: n.keeper.Pid()}
		ready.Runtime = n.runtimes.usual
		n.config.Ready(ready)
	}
	return g.Wait()
}

func (n *node) claimFolders() error {
	for _, dir := range []string{n.config.Root, filepath.Join(n.config.Root, "db"), n.config.State} {
		if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // users reach the socket through it
			return errs.New(errs.Denied, "make %s: %w; berth node runs as root, or takes folders of its own by --root and --state", dir, err)
		}
	}
	release, err := claim(n.config.State, "node")
	if err != nil {
		return err
	}
	n.onClose("claim", func() error { release(); return nil })
	return nil
}

// identity is the node's id, made up on the first start in its root folder.
func identity(ctx context.Context, db *kv.DB) (id string, err error) {
	err = db.View(func(tx *kv.Tx) error { id = string(tx.Get("node", "id")); return nil })
	if err != nil || id != "" {
		return id, err
	}
	id = rand.Text()
	return id, db.Update(ctx, func(tx *kv.Tx) error { return tx.Put("node", "id", []byte(id)) })
}

// openKeeper finds the keeper that holds the containers of the last node, or
// starts one from this very program.
func (n *node) openKeeper(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	n.keeper, err = keeper.Open(ctx, keeper.Config{
		Socket:  filepath.Join(n.config.State, "keeper.sock"),
		PidFile: filepath.Join(n.config.State, "keeper.pid"),
		Command: []string{self, "keeper", "--state", n.config.State, "--log-level", n.config.LogLevel, "--log-format", n.config.LogFormat},
		// Run tells exits, and it runs only when the containers are there.
		Exited: func(e keeper.Exit) { n.containers.Exited(container.Exit(e)) },
		Log:    n.log.With("room", "keeper"),
	})
	if err != nil {
		return err
	}
	n.onClose("keeper", func() error {
		if n.deafen != nil {
			n.deafen()
		}
		return n.keeper.Close()
	})
	return nil
}

// hear reads what the keeper says until the rooms above it are closed: what
// they have under way when the node is to end does not end without it.
func (n *node) hear(ctx context.Context) {
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	var reading sync.WaitGroup
	reading.Go(func() {
		if err := n.keeper.Run(life); err != nil && life.Err() == nil {
			n.log.ErrorContext(life, "nobody hears the keeper any more", "err", err)
		}
	})
	n.deafen = func() { stop(); reading.Wait() }
}

// upgradeKeeper lets a keeper of an older program go on as this one. It keeps
// everything it holds.
func (n *node) upgradeKeeper(ctx context.Context) {
	outdated, err := n.keeper.Outdated()
	if err == nil && outdated {
		err = n.keeper.Upgrade(ctx)
		n.log.InfoContext(ctx, "upgraded the keeper to this program", "pid", n.keeper.Pid())
	}
	if err != nil {
		n.log.WarnContext(ctx, "the keeper stays as it is", "err", err)
	}
}

func (n *node) openBlobs(ctx context.Context) (err error) {
	n.blobs, err = blob.Open(ctx, filepath.Join(n.config.Root, "blobs"), n.log.With("room", "image"))
	if err != nil {
		return err
	}
	n.onClose("blobs", n.blobs.Close)
	return nil
}

func (n *node) openImages(ctx context.Context) (err error) {
	log := n.log.With("room", "image")
	n.images, err = image.Open(ctx, image.Config{
		DB: n.db, Blobs: n.blobs, Snapshots: n.snapshots,
		Parallel: n.config.Registry.Parallel, MaxLayer: n.config.Registry.MaxLayerBytes, Policy: n.config.Registry.Blobs,
		Remote: remote.Config{
			CertDirs: n.config.CertsDirs, Stall: time.Duration(n.config.Registry.StallSeconds) * time.Second,
			UserAgent: "berth/" + n.config.Version.Version, Log: log,
		},
		Notify: func(action, id, name string) {
			n.events.Publish("image", action, id, map[string]string{"name": name})
		},
		Pulled: n.metrics.cri.pulled, Freed: n.wakeCollector, Scrubbed: n.toldScrub, Damaged: n.toldDamage,
		Lazy: n.lazily, Content: n.engine.contents, Leases: n.engine.leases, Named: n.engine.teller.ImageNamed,
		Spaces: []string{pod.Namespace},
		Log:    log,
	})
	if err != nil {
		return err
	}
	n.onClose("images", n.images.Close)
	return nil
}

func (n *node) openNetworks(ctx context.Context) error {
	pools, err := n.config.Network.pools()
	if err != nil {
		return err
	}
	n.networks, err = network.Open(ctx, network.Config{
		DB: n.db, State: n.config.State, Pools: pools,
		CNIConfDir: n.config.Network.CNIConfDir, CNIBinDir: n.config.Network.CNIBinDir, CNITimeout: n.config.Network.cniTimeout(),
		PodCNIConfDir: n.podCNIConfDir(), PodNetwork: n.config.Network.PodNetwork,
		ResolvConf: "/etc/resolv.conf", Log: n.log.With("room", "network"),
	})
	if err != nil {
		return err
	}
	n.onClose("networks", n.networks.Close)
	return nil
}

func (n *node) openVolumes(ctx context.Context) (err error) {
	n.volumes, err = volume.Open(ctx, filepath.Join(n.config.Root, "volumes"), n.db, n.log.With("room", "volume"))
	return err
}

func (n *node) openRuntimes(ctx context.Context) (err error) {
	n.runtimes, err = openRuntimes(ctx, n.config, n.runtimeState(), n.keeper, n.metrics)
	return err
}

// openContainers also matches the records with what the keeper holds: who
// still runs, who ended meanwhile, who is to be started after a reboot.
func (n *node) openContainers(ctx context.Context) (err error) {
	if n.config.InitPath != "" {
		n.host.Init = n.config.InitPath
	}
	life := context.WithoutCancel(ctx) // until it is closed: who is in the middle of a call may finish it
	n.containers, err = container.Open(life, container.Config{
		DB: n.db, Root: n.config.Root, State: n.config.State, Boot: n.boot,
		Images: n.images, Snapshots: n.snapshots, Networks: toldNetworks{n.networks, n.events}, Volumes: toldVolumes{n.volumes, n.events},
		Events: n.events, Meter: n.engine.meter, Processes: processes{n.keeper, n.shims}, Files: n.files(),
		Runtimes: n.runtimes.byName, Runtime: n.runtimes.usual, Host: n.host, CgroupParent: n.cgroup(),
		Idmap: &n.host.Remap, Remap: n.config.RemapUsers,
		Shims: n.foreign, Layers: n.engine.names.Layer, Snapshotter: n.snapshotterNames()[0],
		Log: n.log.With("room", "container"),
	})
	if err != nil {
		return err
	}
	n.onClose("containers", n.containers.Close)
	n.own(tasks.Owner{Set: n.containers})
	n.images.SetUsers(n.containers.Users)
	if err := n.images.Repair(ctx); err != nil {
		n.log.WarnContext(ctx, "some images are not whole: pull them again", "err", err)
	}
	if err := n.images.Resume(ctx); err != nil {
		return err
	}
	survivors, err := n.survivors()
	if err != nil {
		return err
	}
	theirs, err := n.shims.Survivors(ctx)
	if err != nil {
		return err
	}
	survivors = append(survivors, theirs...)
	return n.containers.Recover(ctx, survivors)
}

// survivors are the processes that the keeper holds since an earlier node.
func (n *node) survivors() ([]container.Survivor, error) {
	var all []container.Survivor
	for _, p := range n.keeper.Processes() {
		process, err := oci.Adopt(n.keeper, p)
		if err != nil {
			return nil, fmt.Errorf("take over process %s: %w", p.ID, err)
		}
		survivor := container.Survivor{Process: process}
		if p.Exit != nil {
			exit := container.Exit(*p.Exit)
			survivor.Exit = &exit
		}
		all = append(all, survivor)
	}
	return all, nil
}

func (n *node) serve(ctx context.Context, listener net.Listener) error {
	n.metrics.registry.MustRegister(newCensus(ctx, n.containers, n.log))
	n.metrics.countScrubs(n.images)
	n.observePods()
	face := &rest.Server{
		Containers: n.containers, Images: n.images, Networks: toldNetworks{n.networks, n.events}, Volumes: toldVolumes{n.volumes, n.events}, Events: n.bus,
		System: n, Builder: n.builder, Pods: n.pods.set, PodMeter: n.cri.meter, Seccomp: n.pods.watcher, Metrics: n.metrics.handler(), Tracer: otel.Tracer("berth/face/rest"), Log: n.log.With("room", "rest"),
	}
	return serveHTTP(ctx, listener, face.Handler())
}
