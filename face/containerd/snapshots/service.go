// Package snapshots answers containerd's protocol: its snapshots service,
// containerd.services.snapshots.v1, on a snapshot.Store.
//
// containerd names snapshots by free strings of any length, and one
// Snapshotter of its plug-ins by another. So each name is a record in bucket
// "containerd", under the hash of both, with the parent's name, the labels and
// the times that containerd sees, and the key that the snapshot has in the
// store. What a client may read and write lies in the records alone: a label of
// its never becomes one of the store's.
//
// Several names may stand for one committed layer: a layer of an image, which
// its chain ID names, is kept once on the same parent, whoever unpacked it. Who
// says beforehand what he is about to unpack, by label
// containerd.io/snapshot.ref, is spared the work.
//
// The service has two forms. A snapshotter for another containerd does not look
// at the header with containerd's namespace: a containerd that hands snapshots
// on to a proxy has put the namespace into the names already, and collects the
// garbage of all namespaces in none. The node's own door (Config.Node) keeps
// the names of namespaces apart. There a layer whose diff ID was verified when
// it was unpacked (see Apply) lies in the store under its chain ID, as the
// layers of the node's images do, and every namespace finds it by that name.
//
// A request is answered once its record would survive a crash of this process
// and of the machine; only Remove is not waited for, since containerd collects
// again what comes back. A Commit is written down before it is done, so that
// Open can do it if a crash came first. Snapshots of the store that bear this package's prefix
// and have no record are what a crash left: Open and Cleanup remove them.
package snapshots

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"

	"berth/base/errs"
	"berth/base/kv"
	"berth/face/containerd/wire"
	"berth/node/lease"
	"berth/node/snapshot"
)

const (
	bucket    = "containerd"
	keyPrefix = "containerd-" // of the store's keys that are made here
)

// Config says on what the Service stands.
type Config struct {
	Store snapshot.Store
	DB    *kv.DB // the one that the store's records are in
	// Trees mounts trees for containerd to bind, where the store's Mounts are
	// not what containerd takes; nil where they are.
	Trees Trees
	// Sync makes Commit wait until the layer would survive a loss of power.
	Sync bool
	// Node makes the service the node's own door; nil for a snapshotter of
	// another containerd.
	Node *Node
	Log  *slog.Logger
}

// Node is what the node's own door needs beyond a store. It needs Trees too.
type Node struct {
	// Dir is where Trees mounts: its mounts are known again by it.
	Dir string
	// Names are the snapshotters that clients may ask for; all are the store.
	Names  []string
	Layers Layers
	Leases Leases
	Events wire.Publisher
}

// Layers are the layers of the node's images.
type Layers interface {
	// Unpacking says whether a layer is being unpacked. If it is, done is
	// closed at the end. If not it is now, by the caller, until it calls land.
	Unpacking(key snapshot.Key) (done <-chan struct{}, land func(error))
	// FreedLayers has layers collected that nobody needs any more.
	FreedLayers(ctx context.Context)
}

// Leases keep what clients have yet to refer to.
type Leases interface {
	Add(ctx context.Context, namespace, id string, r lease.Resource) error
	Hold(namespace string, resources ...lease.Resource) (release func())
}

// Trees keeps trees mounted.
type Trees interface {
	// Mounts mounts the tree of a snapshot if it is not yet, and says how to
	// bind it.
	Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error)
	// Remove takes a tree down; none is no error.
	Remove(ctx context.Context, key snapshot.Key) error
}

// Service is the snapshots service.
type Service struct {
	api.UnimplementedSnapshotsServer
	store snapshot.Store
	trees Trees // or nil
	db    *kv.DB
	sync  bool
	node  *Node // or nil
	log   *slog.Logger

	// mu is never held while the store or the disk is waited for.
	mu       sync.RWMutex
	byName   map[name]*record
	children map[name]int                       // by parent
	holders  map[snapshot.Key]map[name]struct{} // the names of each snapshot of the store
	layers   map[layer]snapshot.Key             // what was unpacked from images
	unpacked map[name]*unpacked                 // what Apply has brought and Commit waits for
	flights  map[name]*flight                   // layers that clients unpack
	leaving  map[snapshot.Key]chan struct{}     // layers that node/image removes just now
}

// name is what containerd calls a snapshot, and in which snapshotter.
type name struct{ space, name string }

func (n name) bucketKey() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s%s", len(n.space), n.space, n.name))
	return hex.EncodeToString(sum[:])
}

// record is one name. It does not change: a changed copy takes its place.
type record struct {
	Space   string            `json:"space,omitempty"`
	Name    string            `json:"name"`
	Parent  string            `json:"parent,omitempty"` // a name in the same space
	Kind    snapshot.Kind     `json:"kind"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	Labels  map[string]string `json:"labels,omitempty"`
	Store   snapshot.Key      `json:"store"`
	// Chain is the chain ID of a layer that was unpacked from an image.
	Chain string `json:"chain,omitempty"`
	// From is the key of the active snapshot that Store was committed from. A
	// crash may have come before the store's own record of it was on disk.
	From snapshot.Key `json:"from,omitempty"`
	// Applied says that a layer was unpacked which waits for the commit. It is
	// lost with the process, and the snapshot with it.
	Applied bool `json:"applied,omitempty"`
	// Loose says that a view was made under no lease: nothing but a client's
	// attention holds it.
	Loose bool `json:"loose,omitempty"`

	// making marks a name that is taken, but that only its maker sees yet.
	making bool
	// committing marks an active snapshot that is being made a layer.
	committing bool
}

func (r *record) name() name   { return name{r.Space, r.Name} }
func (r *record) parent() name { return name{r.Space, r.Parent} }

// Open reads the records and removes what a crash left half made.
func Open(ctx context.Context, c Config) (*Service, error) {
	s := &Service{
		store: c.Store, trees: c.Trees, db: c.DB, sync: c.Sync, node: c.Node, log: c.Log,
		byName: map[name]*record{}, children: map[name]int{},
		holders: map[snapshot.Key]map[name]struct{}{}, layers: map[layer]snapshot.Key{},
		unpacked: map[name]*unpacked{}, flights: map[name]*flight{}, leaving: map[snapshot.Key]chan struct{}{},
	}
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("open containerd's snapshots: %w", err)
	}
	if err := s.sweep(ctx); err != nil {
		return nil, fmt.Errorf("open containerd's snapshots: %w", err)
	}
	return s, nil
}

// Register makes the service one of server's.
func (s *Service) Register(server grpc.ServiceRegistrar) { api.RegisterSnapshotsServer(server, s) }

// load reads the records and forgets the names whose snapshot was lost with
// the power.
func (s *Service) load(ctx context.Context) error {
	var all []*record
	err := s.db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, bucket, "", func(_ string, rec record) error {
			all = append(all, &rec)
			return nil
		})
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rec := range all {
		_, err := s.store.Stat(ctx, rec.Store)
		if errs.KindOf(err) == errs.NotFound && rec.From != "" {
			_, err = s.store.Commit(ctx, rec.Store, rec.From, nil)
		}
		switch {
		case rec.Applied && rec.Kind != snapshot.KindCommitted:
			s.forget(rec)
		case err == nil:
			s.link(rec)
		case errs.KindOf(err) == errs.NotFound:
			s.log.WarnContext(ctx, "snapshot was lost with the power: remove its image from containerd and pull it again", "name", rec.Name)
			s.forget(rec)
		default:
			return err
		}
	}
	for _, rec := range s.byName { // again, now that all parents are known
		s.index(rec)
	}
	return nil
}

// link lets rec take its name, or the place of the record that had it. mu is
// held.
func (s *Service) link(rec *record) {
	if old := s.byName[rec.name()]; old != nil {
		s.unlink(old)
	}
	s.byName[rec.name()] = rec
	if rec.Parent != "" {
		s.children[rec.parent()]++
	}
	if s.holders[rec.Store] == nil {
		s.holders[rec.Store] = map[name]struct{}{}
	}
	s.holders[rec.Store][rec.name()] = struct{}{}
	if !rec.making {
		s.index(rec)
	}
}

// unlink frees the name of rec and says whether its snapshot of the store has
// no other. mu is held.
func (s *Service) unlink(rec *record) (last bool) {
	delete(s.byName, rec.name())
	if rec.Parent != "" {
		if s.children[rec.parent()]--; s.children[rec.parent()] == 0 {
			delete(s.children, rec.parent())
		}
	}
	delete(s.holders[rec.Store], rec.name())
	if len(s.holders[rec.Store]) > 0 {
		return false
	}
	delete(s.holders, rec.Store)
	if l, ok := s.layerOf(rec); ok && s.layers[l] == rec.Store {
		delete(s.layers, l)
	}
	return true
}

// find returns the record of a name that is not being made just now. mu is
// held.
func (s *Service) find(n name) (*record, error) {
	rec := s.byName[n]
	if rec == nil || rec.making {
		return nil, errs.New(errs.NotFound, "snapshot %q does not exist", n.name)
	}
	return rec, nil
}

// save and forget put a change on its way to the disk, in the order of calls.
// mu is held.
func (s *Service) save(rec *record) {
	s.db.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, rec.name().bucketKey(), rec) })
}

func (s *Service) forget(rec *record) {
	s.db.Later(func(tx *kv.Tx) error { return tx.Delete(bucket, rec.name().bucketKey()) })
}

// durable returns when what was saved before is on disk, and with it the
// store's records of what they name.
func (s *Service) durable(ctx context.Context) error {
	return s.db.Update(context.WithoutCancel(ctx), func(*kv.Tx) error { return nil })
}

// newKey makes up a key for the store. None is ever used again, so that a late
// removal cannot meet a newer snapshot.
func newKey() snapshot.Key { return snapshot.Key(keyPrefix + strings.ToLower(rand.Text())) }
