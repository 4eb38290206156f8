package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"berth/base/errs"
	"berth/base/group"
	"berth/base/kv"
	"berth/node/bundle"
	"berth/node/network"
	"berth/node/snapshot"
	"berth/spec"
)

// Config is what a Set stands on.
type Config struct {
	DB    *kv.DB
	Root  string // durable folder; logs live below it
	State string // folder that is empty after a reboot; bundles live below it
	Boot  string // which boot this is

	Images    Images
	Snapshots Snapshots
	Networks  Networks
	Volumes   Volumes
	Events    Events
	Meter     Meter
	Processes Processes
	Files     Files // nil where images are whole before they are kept

	Runtimes map[string]Runtime
	Runtime  string // the one used where none is asked for
	Host     bundle.Host
	// CgroupParent is where containers go that name no parent of their own.
	CgroupParent string
	// Idmap is what --userns auto maps to; nil or empty where the node has no
	// ids to give. Remap gives it also to containers that say nothing.
	Idmap *bundle.Idmap
	Remap bool

	// Shims finds the runtime of a given container by a name that is neither
	// among Runtimes nor RuntimeV2. It may be nil.
	Shims func(ctx context.Context, name string) (Runtime, error)
	// Layers finds an Active snapshot by a client's name for it. It may be nil.
	Layers func(ctx context.Context, namespace, snapshotter, name string) (snapshot.Key, error)
	// Snapshotter is what clients call Snapshots.
	Snapshotter string
	// Roots mounts the root file systems of given containers, and what holds
	// the files that the node writes for its own; nil for the kernel's own way.
	Roots Roots

	Log *slog.Logger
}

// Roots mounts what a client says at one place, one mount above the other, and
// takes all of them away. A place where nothing is mounted is no error.
type Roots interface {
	Mount(ctx context.Context, mounts []snapshot.Mount, target string) error
	Unmount(ctx context.Context, target string) error
}

// Images are the images of this node.
type Images interface {
	Get(ctx context.Context, ref string) (spec.Image, error)
	Chain(ctx context.Context, imageID string) (snapshot.Key, error)
	Commit(ctx context.Context, base spec.Image, active snapshot.Key, config spec.ImageConfig, req spec.CommitRequest, read func()) (spec.Image, error)
}

// Snapshots hold the root file systems; a snapshot.Store is one.
type Snapshots interface {
	Prepare(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error)
	Mount(ctx context.Context, key snapshot.Key, target string) error
	Unmount(ctx context.Context, target string) error
	Stat(ctx context.Context, key snapshot.Key) (snapshot.Info, error)
	Remove(ctx context.Context, key snapshot.Key) error
	Walk(ctx context.Context, fn func(snapshot.Info) error) error
	Usage(ctx context.Context, key snapshot.Key) (snapshot.Usage, error)
	Changes(ctx context.Context, key snapshot.Key) ([]spec.Change, error)
}

// Networks join containers to networks.
type Networks interface {
	NewNamespace(ctx context.Context, id string) (path string, err error)
	RemoveNamespace(ctx context.Context, id string) error
	Attach(ctx context.Context, req network.AttachRequest) (network.Attachment, error)
	Detach(ctx context.Context, container string) error
	Connect(ctx context.Context, req network.AttachRequest, config spec.EndpointConfig) (spec.Endpoint, error)
	Disconnect(ctx context.Context, container, network string) error
	Rename(container, name string)
	ResolvConf(choice spec.NetworkChoice, endpoints []spec.Endpoint) []byte
	Hosts(choice spec.NetworkChoice, hostname, domainname string, endpoints []spec.Endpoint) []byte
}

// Volumes keep data that outlives containers.
type Volumes interface {
	Create(ctx context.Context, config spec.VolumeConfig) (spec.Volume, error)
	List(ctx context.Context, filter spec.Filter) ([]spec.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Reserve(ctx context.Context, name, container string) error
	Acquire(ctx context.Context, name, container string) (path string, err error)
	Unmount(ctx context.Context, name, container string) error
	Release(ctx context.Context, name, container string) error
	Fill(ctx context.Context, name, root, from string) error
}

// Events is told what happens.
type Events interface {
	Publish(kind, action, id string, attrs map[string]string)
}

// Meter reads cgroups, named by their path in the hierarchies.
type Meter interface {
	Read(cgroup string, pid int) (spec.Stats, error)
	OOMKills(cgroup string) (uint64, error)
	Pids(cgroup string) ([]int, error)
}

// Processes owns the processes that the runtimes start.
type Processes interface {
	// Forget drops an ended process with its descriptors and its exit.
	Forget(ctx context.Context, id string) error
	Signal(id string, sig syscall.Signal) error
	// SignalGroup reaches also what the process has started, unless that went
	// its own way.
	SignalGroup(id string, sig syscall.Signal) error
	// ReopenLog has the process's output go to a new file of the same name.
	ReopenLog(ctx context.Context, id string) error
}

// Set is the containers of one node.
type Set struct {
	Config
	db *records

	life       context.Context //nolint:containedctx // what the Set does by itself ends with it
	end        context.CancelFunc
	background group.Background

	mu         sync.RWMutex
	containers map[string]*container // by id
	names      map[string]string     // to id; also those being created
	pending    map[string]string     // id of a container being created to its image
	// mounted are the roots that MountRoot has mounted, by id: in this node's
	// life, for one that comes after it takes them down.
	mounted map[string]bool

	execMu sync.Mutex
	execs  map[string]*execution

	forget forgetter
}

var _ io.Closer = (*Set)(nil)

// Open reads the records of the node's containers. Recover has to come next,
// before any process's exit is told. ctx is the Set's life: exits, restarts
// and health checks end with it or with Close; the containers do not.
func Open(ctx context.Context, config Config) (*Set, error) {
	if config.Runtimes[config.Runtime] == nil {
		return nil, errs.New(errs.Invalid, "there is no runtime named %q", config.Runtime)
	}
	s := &Set{
		Config:     config,
		containers: map[string]*container{},
		names:      map[string]string{},
		pending:    map[string]string{},
		mounted:    map[string]bool{},
		execs:      map[string]*execution{},
	}
	if config.Idmap != nil && len(config.Idmap.UIDs) == 0 {
		s.Idmap = nil
	}
	if config.Roots == nil {
		s.Roots = kernelRoots{}
	}
	s.life, s.end = context.WithCancel(ctx)
	s.forget.init(s)
	db, found, err := openRecords(&config)
	if err != nil {
		return nil, fmt.Errorf("read the records of containers: %w", err)
	}
	s.db = db
	for _, r := range found {
		c := newContainer(r)
		c.rebooted = r.Boot != config.Boot
		if r.fresh {
			db.goOnWriting(c)
		}
		s.containers[c.id] = c
		if c.given.Load() == nil {
			s.names[c.name()] = c.id
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.containers)) {
		if c := s.containers[key]; c.given.Load() != nil {
			s.nameLocked(c) // where it is left
		}
	}
	return s, nil
}

// Close ends what the Set does by itself and waits for it. The containers go on.
func (s *Set) Close() error {
	s.end()
	s.eachContainer((*container).quiet)
	s.background.Close()
	s.forget.flush()
	var failed error
	s.eachContainer(func(c *container) {
		if r := c.current(); r != nil {
			failed = errors.Join(failed, r.process.Close())
		}
	})
	return failed
}

// Users are the ids of the containers made from an image: the node's own know
// its ID, those of clients in the default namespace the name that they gave.
func (s *Set) Users(image string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ids []string
	for id, c := range s.containers {
		is := c.get()
		if is.ImageID == image || c.given.Load() != nil && is.Image == image && is.Namespace == spec.DefaultNamespace {
			ids = append(ids, id)
		}
	}
	for id, of := range s.pending {
		if of == image {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Claims reports whether id is that of a container of the node, be it only
// in the making.
func (s *Set) Claims(id string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.containers[id] != nil || s.pending[id] != "" || s.mounted[id]
}

// find looks a container up by name, id, or the beginning of an id. Clients
// choose ids as they like: one may be the name of a container of ours. What they
// call a container in addition to its id counts less than an id.
func (s *Set) find(ref string) (*container, error) {
	ref = strings.TrimPrefix(ref, "/")
	s.mu.RLock()
	defer s.mu.RUnlock()
	if ref == "" {
		return nil, errs.New(errs.Invalid, "a container's name or id is needed")
	}
	byID, byName := s.containers[ref], s.containers[s.names[ref]]
	switch {
	case byID != nil && byName != nil && byID != byName && byName.given.Load() == nil:
		return nil, errs.New(errs.Conflict, "%q is the id of one container and the name of another", ref)
	case byID != nil:
		return byID, nil
	case byName != nil:
		return byName, nil
	}
	var whole, begun []*container
	for _, c := range s.containers {
		switch id := c.get().ID; {
		case id == ref: // in another namespace
			whole = append(whole, c)
		case strings.HasPrefix(id, ref):
			begun = append(begun, c)
		}
	}
	switch {
	case len(whole) == 1:
		return whole[0], nil
	case len(whole) > 1:
		return nil, errs.New(errs.Conflict, "several namespaces have a container %q", ref)
	case len(begun) == 1:
		return begun[0], nil
	case len(begun) > 1:
		return nil, errs.New(errs.Conflict, "%q is the beginning of several containers' ids", ref)
	}
	return nil, errs.New(errs.NotFound, "no such container: %s", ref)
}

// lock finds a container and takes its op.
func (s *Set) lock(ctx context.Context, ref string) (*container, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if err := c.op.Lock(ctx); err != nil {
		return nil, fmt.Errorf("container %s is busy: %w", c.name(), err)
	}
	if c.isGone() {
		c.op.Unlock()
		return nil, errs.New(errs.NotFound, "no such container: %s", ref)
	}
	return c, nil
}

// all returns the containers, newest first.
func (s *Set) all() []*container {
	s.mu.RLock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b *container) int {
		return cmp.Or(b.get().Created.Compare(a.get().Created), cmp.Compare(a.id, b.id))
	})
	return all
}

func (s *Set) eachContainer(fn func(*container)) {
	for _, c := range s.all() {
		fn(c)
	}
}

func (s *Set) bundleDir(id string) string { return filepath.Join(s.State, "containers", id) }

func (s *Set) logDir(id string) string { return filepath.Join(s.Root, "logs", id) }

func (s *Set) runtime(c *spec.Container) (Runtime, error) {
	r, err := s.runtimeNamed(c.Runtime)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	return r, nil
}

// cgroup is where the container's processes are in each hierarchy.
func (c *container) cgroup() string {
	if t := c.task.Load(); t != nil {
		return t.Cgroup
	}
	view := c.get()
	return bundle.CgroupPath(view.Config.CgroupParent, view.ID)
}

// publish tells of something that happened to a container.
func (s *Set) publish(c *spec.Container, action string, attrs ...string) {
	if c.Quiet {
		return
	}
	all := make(map[string]string, len(c.Config.Labels)+len(attrs)/2+5)
	maps.Copy(all, c.Config.Labels)
	attrs = append(attrs, "name", c.Name, "image", c.Image, "namespace", orElse(c.Namespace, spec.DefaultNamespace), "container", c.ID, "pod", c.Pod)
	if c.Namespace != "" {
		attrs = append(attrs, "given", "true")
	}
	for i := 0; i+1 < len(attrs); i += 2 {
		if attrs[i+1] != "" {
			all[attrs[i]] = attrs[i+1]
		}
	}
	s.Events.Publish("container", action, c.ID, all)
}
