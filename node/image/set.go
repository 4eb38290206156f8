// Package image holds the images of one node: their names, their blobs and
// the snapshots that their layers are unpacked to.
//
// What an image is on this node is one record in bucket "node.image", under
// the image's ID, the digest of its configuration. Names lie in the catalog
// (package image/catalog); each carries the ID that it stands for, since its
// target may be an index of many platforms. Both are in memory too, so that
// List and Get read no disk.
//
// Clients of containerd's protocol have namespaces of names. The default one is
// the node's own, so a name that a client gives there becomes one of its images
// if it can: see CreateName. So it is in the namespaces of Config.Spaces, which
// name images too: see Space. In the others names are just names.
//
// The layers are committed snapshots under their chain IDs, with the label
// "berth.layer". Compressed blobs are kept as they came, or not: see Policy.
// Bucket "node.image.place" remembers which repositories have a blob, so that
// a push gives back the digests that were pulled in either case. Snapshots and
// blobs that no image names any more are collected: see Collect.
//
// Lock order: Set.write, then the catalog's and Set.mu.
package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/kv"
	"berth/base/span"
	"berth/image/blob"
	"berth/image/catalog"
	"berth/image/pull"
	"berth/image/reference"
	"berth/image/remote"
	"berth/node/content"
	"berth/node/lease"
	"berth/node/snapshot"
	"berth/spec"
)

const (
	bucket = "node.image"
	// layerLabel marks snapshots that belong to images; it holds the layer's
	// unpacked size, tarLabel that of its tar.
	layerLabel = snapshot.LayerSize
	tarLabel   = snapshot.LayerTar
)

// Config says what a Set works with.
type Config struct {
	DB        *kv.DB
	Blobs     *blob.Store
	Snapshots snapshot.Store
	// Remote says how to speak with registries.
	Remote remote.Config
	// Parallel is how many layers of one image are fetched and unpacked at a
	// time. When 0, as many as there are processors, and at least four.
	Parallel int
	// MaxLayer bounds what one layer may unpack to; blob.DefaultLimit when 0.
	MaxLayer int64
	// Policy says which compressed layers stay here; Keep when "".
	Policy Policy
	// Notify hears what happened: pull, push, load, tag, untag, delete, commit,
	// prune. It is called from many goroutines and must not wait. May be nil.
	Notify func(action, id, name string)
	// Pulled hears how each pull went; nil where nobody wants to know.
	Pulled func(Pulled)
	// Freed hears that there may be something to collect: calling Collect is
	// then up to it, at another time. Where it is nil the Set does so by itself,
	// and who removes an image waits for that.
	Freed func()
	// Scrubbed and Damaged hear how each scrub ended, and what it found. They
	// must not wait. May be nil.
	Scrubbed func(spec.ScrubResult)
	Damaged  func(spec.Damage)
	// Content are the blobs of the namespaces of clients, Leases what they
	// hold; nil: there are none. Named hears what happens to names; it must not
	// wait. May be nil.
	Content *content.Set
	Leases  *lease.Set
	// Spaces are the namespaces, besides the default one, whose names stand for
	// images of this node.
	Spaces []string
	Named  func(ctx context.Context, namespace string, what Change, rec catalog.Record)
	// Lazy is what lets images be used before all of them is here; nil: never.
	Lazy *Lazily
	Log  *slog.Logger
}

// Set is the images of a node. Safe for concurrent use.
type Set struct {
	Config
	catalog *catalog.Catalog
	puller  *pull.Puller
	flights flights
	keeping keeping
	links   links
	scrubs  scrubs
	noting  noting
	watches watches
	gauge   gauge

	write sync.Mutex // one change of names or records at a time

	mu     sync.RWMutex
	images map[string]*record           // by ID; a record does not change, but is replaced
	names  map[string]string            // full name to ID
	spaces map[string]map[string]string // the same of each of Spaces
	listed listing
	// waiting are the names that stand for no image yet.
	waiting waiting
	places  map[digest.Digest][]place
	users   func(image string) []string
	letGo   func(key snapshot.Key, remove func() error) error // nil: nobody else holds layers
	auths   map[string]*spec.RegistryAuth                     // of the latest pull from a repository
}

// record is one image.
type record struct {
	// Image without Names and Containers, which are found when asked for.
	Image    spec.Image         `json:"image"`
	Target   ocispec.Descriptor `json:"target"`
	Manifest ocispec.Descriptor `json:"manifest"`
	Config   ocispec.Descriptor `json:"config"`
	Layers   []layer            `json:"layers"`
	// Early are the layers that the image stands on until the ordinary ones
	// are here.
	Early []snapshot.Key `json:"early,omitempty"`
	// Given says that a client brought it: see CreateName.
	Given bool `json:"given,omitempty"`
	// Passing says that only a namespace of Spaces ever named it: without names
	// and containers it goes.
	Passing bool `json:"passing,omitempty"`
	// About is what a given image's layers may unpack to.
	About int64 `json:"about,omitempty"`

	platform ocispec.Platform
}

// layer is a blob and what it unpacks to.
type layer struct {
	ocispec.Descriptor
	DiffID digest.Digest `json:"diffID"`
	// Made says that blob.Compress makes the blob of the layer's tar.
	Made bool `json:"made,omitempty"`
}

// chain lists the keys of the layers' snapshots, lowest first.
func chain(layers []layer) []snapshot.Key {
	keys := make([]snapshot.Key, len(layers))
	var parent snapshot.Key
	for i, l := range layers {
		keys[i] = snapshot.Chain(parent, l.DiffID.String())
		parent = keys[i]
	}
	return keys
}

// Open loads the images that are here.
func Open(ctx context.Context, c Config) (*Set, error) {
	c.Parallel = cmp.Or(c.Parallel, max(4, runtime.GOMAXPROCS(0)))
	c.MaxLayer = cmp.Or(c.MaxLayer, blob.DefaultLimit)
	c.Policy = cmp.Or(c.Policy, Keep)
	if c.Notify == nil {
		c.Notify = func(string, string, string) {}
	}
	if c.Named == nil {
		c.Named = func(context.Context, string, Change, catalog.Record) {}
	}
	if c.Scrubbed == nil {
		c.Scrubbed = func(spec.ScrubResult) {}
	}
	if c.Damaged == nil {
		c.Damaged = func(spec.Damage) {}
	}
	names, err := catalog.Open(c.DB)
	if err != nil {
		return nil, err
	}
	s := &Set{
		Config: c, catalog: names,
		puller: pull.New(pull.Config{Blobs: c.Blobs, Remote: c.Remote, Parallel: c.Parallel, Limit: c.MaxLayer, Pass: c.Policy != Keep, Log: c.Log}),
		images: map[string]*record{}, names: map[string]string{}, places: map[digest.Digest][]place{},
		spaces: map[string]map[string]string{}, waiting: waiting{}, users: func(string) []string { return nil }, auths: map[string]*spec.RegistryAuth{},
	}
	s.noting.life, s.noting.stop = context.WithCancel(context.WithoutCancel(ctx))
	err = c.DB.View(func(tx *kv.Tx) error {
		err := kv.EachJSON(tx, bucket, "", func(id string, rec record) error {
			s.images[id] = &rec
			return nil
		})
		if err != nil {
			return err
		}
		err = kv.EachJSON(tx, placeBucket, "", func(d string, list []place) error {
			s.places[digest.Digest(d)] = list
			return nil
		})
		return errors.Join(err, s.scrubs.load(tx))
	})
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	for _, space := range c.Spaces {
		s.spaces[space] = map[string]string{}
	}
	for _, space := range s.homes() {
		for _, name := range s.namesIn(space).List() {
			if name.Image != "" {
				s.home(space)[name.Name] = name.Image
			}
		}
	}
	if err := s.awaitNamed(ctx); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	return s, nil
}

// SetUsers says who knows which containers were made from an image, by its ID
// or by one of its full names. Call it before the Set is used.
func (s *Set) SetUsers(users func(image string) []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = users
}

func (s *Set) usersOf(id string) []string {
	all := s.usersByID(id)
	for _, name := range s.namesOf(id) {
		all = append(all, s.usersByID(name)...)
	}
	return all
}

// homes are the namespaces whose names stand for images, the node's own first.
func (s *Set) homes() []string { return append([]string{spec.DefaultNamespace}, s.Spaces...) }

// home are the names of one of homes, with the IDs of what they stand for; nil
// for another namespace. mu is held, for as long as they are used.
func (s *Set) home(namespace string) map[string]string {
	if namespace == spec.DefaultNamespace {
		return s.names
	}
	return s.spaces[namespace]
}

// named is a name in its namespace.
type named struct{ space, name string }

// everyName lists the names of an image in all of homes.
func (s *Set) everyName(id string) []named {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []named
	for _, space := range s.homes() {
		for name, of := range s.home(space) {
			if of == id {
				all = append(all, named{space, name})
			}
		}
	}
	slices.SortFunc(all, func(a, b named) int { return cmp.Or(cmp.Compare(a.space, b.space), cmp.Compare(a.name, b.name)) })
	return all
}

// usersByID leaves out those who know the image by a name, for which a client
// that removes the name does not ask.
func (s *Set) usersByID(id string) []string {
	s.mu.RLock()
	users := s.users
	s.mu.RUnlock()
	return slices.Clone(users(id))
}

// naming is what an image is called from now on, in one of homes.
type naming struct {
	space  string // "" is the default namespace
	names  []string
	labels map[string]string
}

// keep makes rec an image of this node, called by names. A name that stood for
// another image moves. at is where its parts can be had again, if anywhere.
func (s *Set) keep(ctx context.Context, rec *record, as naming, at *place) (_ spec.Image, err error) {
	ctx, end := span.Start(ctx, "record image", "image", rec.Image.ID)
	defer func() { end(err) }()
	s.write.Lock()
	defer s.write.Unlock()
	id := rec.Image.ID
	rec.Image.Pulled = time.Now().UTC()
	if old := s.image(id); as.space != "" {
		rec.Passing = old == nil || old.Passing || old.Given && len(s.namesOf(id)) == 0
	}
	var places map[digest.Digest][]place
	if at != nil {
		places = s.settlePlaces(digests(rec.parts()), *at)
	}
	change := catalog.Change{Also: func(tx *kv.Tx) error {
		return errors.Join(kv.PutJSON(tx, bucket, id, rec), putPlaces(tx, places))
	}}
	space := cmp.Or(as.space, spec.DefaultNamespace)
	for _, name := range as.names {
		change.Set = append(change.Set, catalog.Record{Name: name, Target: rec.Target, Image: id, Labels: as.labels})
	}
	if err := s.apply(ctx, space, change); err != nil {
		return spec.Image{}, err
	}
	s.takePlaces(places)
	s.mu.Lock()
	s.images[id] = rec
	s.listed.changed++
	for _, name := range as.names {
		s.home(space)[name] = id
		s.waiting.stop(named{space, name})
	}
	s.mu.Unlock()
	return s.show(rec), nil
}

// show makes what callers see of a record.
func (s *Set) show(rec *record) spec.Image {
	image := rec.Image
	image.Names = s.shownNames(image.ID)
	image.Containers = len(s.usersOf(image.ID))
	image.Sources = s.sourcesOf(rec)
	image.Size = s.sizeOf(s.noting.life, rec)
	image.Layers = slices.Clone(image.Layers)
	image.Labels = maps.Clone(image.Labels)
	image.Config = cloneConfig(image.Config)
	return image
}

// shownNames are the names that people can call an image by: the node's own,
// and those of other namespaces that are not the node's for something else.
// Clients also give names that are none, such as <none>@sha256:…, and by digest
// what has a tag too.
func (s *Set) shownNames(id string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names, tagged := []string{}, false
	add := func(text string, own bool) {
		name, err := reference.Parse(text)
		if err != nil || slices.Contains(names, text) || !own && tagged && name.Untagged() {
			return
		}
		names, tagged = append(names, text), tagged || !name.Untagged()
	}
	for name, of := range s.names {
		if of == id {
			add(name, true)
		}
	}
	for _, untagged := range []bool{false, true} {
		for _, space := range s.Spaces {
			for name, of := range s.spaces[space] {
				if _, taken := s.names[name]; of == id && !taken && strings.Contains(name, "@") == untagged {
					add(name, false)
				}
			}
		}
	}
	slices.Sort(names)
	return names
}

func (s *Set) namesOf(id string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := []string{}
	for name, of := range s.names {
		if of == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *Set) all() []*record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.images))
}

// call is what people call an image.
func (s *Set) call(rec *record) string {
	if names := s.shownNames(rec.Image.ID); len(names) > 0 {
		if name, err := reference.Parse(names[0]); err == nil {
			return name.Familiar()
		}
	}
	return rec.Image.ID
}
