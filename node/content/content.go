// Package content gives each namespace its own view of the node's blobs: which
// there are, with which labels, and what is being written. The bytes lie once,
// in package image/blob, however many namespaces have them: whoever names the
// digest of a blob that is here need not bring it again.
//
// Blobs of the node's own images are seen in the namespaces that name these: the
// default one, and that of Kubernetes. They
// belong to node/image (see Natives); a record of their own they get when a
// client changes their labels, or holds them.
//
// Bucket "content" holds a record for each blob of a namespace under
// "<namespace>/<digest>", bucket "content.ingest" one for each ingest under
// its name in the blob store. Both are in memory too. A blob is recorded after
// it is durable, in the same transaction that forgets its ingest; the records
// of ingests are durable within 100 ms, and what a crash leaves without one is
// dropped. Nothing here deletes blobs: node/image collects those that neither
// an image nor a namespace holds, and asks Drop.
//
// Lock order: the lock of one resource (Set.lock), then the leases', then
// Set.mu.
package content

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/blob"
	"berth/node/lease"
)

const (
	bucket       = "content"
	ingestBucket = "content.ingest"
)

// Info describes a blob as a namespace sees it.
type Info struct {
	Digest  digest.Digest     `json:"-"`
	Size    int64             `json:"size"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
}

// Natives are the blobs of the node's own images.
type Natives interface {
	// EachPart tells of each blob of a namespace's images once.
	EachPart(ctx context.Context, namespace string, fn func(Info)) error
	// Part describes one. NotFound: no image of the namespace has it.
	Part(ctx context.Context, namespace string, d digest.Digest) (Info, error)
	// Bring opens a blob that is not kept, wherever it has to be had from.
	Bring(ctx context.Context, d digest.Digest) (*os.File, error)
	// Arrived hears that a blob has come into one of these namespaces.
	Arrived(ctx context.Context, d digest.Digest)
}

// Config says what a Set works with.
type Config struct {
	DB     *kv.DB
	Blobs  *blob.Store
	Leases *lease.Set
	// Namespaces are those in which Natives are seen.
	Namespaces []string
	Natives    Natives // nil: none
	// Created and Deleted hear of what clients commit and delete; of what is
	// collected they do not. They must not wait. May be nil.
	Created func(ctx context.Context, namespace string, info Info)
	Deleted func(ctx context.Context, namespace string, d digest.Digest)
	Log     *slog.Logger
}

// Set is the content of all namespaces. Safe for concurrent use.
type Set struct {
	Config
	locks locks

	mu      sync.Mutex
	spaces  map[string]map[digest.Digest]Info // labels in it do not change
	held    map[digest.Digest]int             // by records, and by writers that share
	ingests map[ingestKey]*ingest
}

// Open loads the records, and drops what a crash left of ingests.
func Open(c Config) (*Set, error) {
	if c.Created == nil {
		c.Created = func(context.Context, string, Info) {}
	}
	if c.Deleted == nil {
		c.Deleted = func(context.Context, string, digest.Digest) {}
	}
	s := &Set{
		Config: c, spaces: map[string]map[digest.Digest]Info{}, held: map[digest.Digest]int{}, ingests: map[ingestKey]*ingest{},
	}
	err := c.DB.View(func(tx *kv.Tx) error {
		err := kv.EachJSON(tx, bucket, "", func(key string, info Info) error {
			namespace, d, _ := strings.Cut(key, "/")
			info.Digest = digest.Digest(d)
			s.put(namespace, info)
			return nil
		})
		return errors.Join(err, s.loadIngests(tx))
	})
	if err == nil {
		err = s.dropStray()
	}
	if err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	return s, nil
}

// put and take are for who holds mu, or is alone.
func (s *Set) put(namespace string, info Info) {
	space := s.spaces[namespace]
	if space == nil {
		space = map[digest.Digest]Info{}
		s.spaces[namespace] = space
	}
	if _, had := space[info.Digest]; !had {
		s.held[info.Digest]++
	}
	space[info.Digest] = info
}

func (s *Set) take(namespace string, d digest.Digest) {
	if _, had := s.spaces[namespace][d]; had {
		delete(s.spaces[namespace], d)
		s.release(d)
	}
	if len(s.spaces[namespace]) == 0 {
		delete(s.spaces, namespace)
	}
}

func (s *Set) release(d digest.Digest) {
	if s.held[d]--; s.held[d] <= 0 {
		delete(s.held, d)
	}
}

// Info describes a blob. NotFound: the namespace does not have it.
func (s *Set) Info(ctx context.Context, namespace string, d digest.Digest) (Info, error) {
	if info, ok := s.recorded(namespace, d); ok {
		if s.Blobs.Has(d) || s.isNative(ctx, namespace, d) {
			return info, nil
		}
		return Info{}, missing(d)
	}
	return s.native(ctx, namespace, d)
}

func (s *Set) recorded(namespace string, d digest.Digest) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, ok := s.spaces[namespace][d]
	return info.clone(), ok
}

func (s *Set) native(ctx context.Context, namespace string, d digest.Digest) (Info, error) {
	if !s.hasNatives(namespace) {
		return Info{}, missing(d)
	}
	info, err := s.Natives.Part(ctx, namespace, d)
	if errors.Is(err, errs.NotFound) {
		return Info{}, missing(d)
	}
	return info.clone(), err
}

func (s *Set) hasNatives(namespace string) bool {
	return s.Natives != nil && slices.Contains(s.Namespaces, namespace)
}

func (s *Set) isNative(ctx context.Context, namespace string, d digest.Digest) bool {
	_, err := s.native(ctx, namespace, d)
	return err == nil
}

func missing(d digest.Digest) error {
	return errs.New(errs.NotFound, "content %s: not found", d)
}

// List returns what a namespace has, by digest.
func (s *Set) List(ctx context.Context, namespace string) ([]Info, error) {
	all := map[digest.Digest]Info{}
	if s.hasNatives(namespace) {
		if err := s.Natives.EachPart(ctx, namespace, func(i Info) { all[i.Digest] = i.clone() }); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	for d, info := range s.spaces[namespace] {
		all[d] = info.clone()
	}
	s.mu.Unlock()
	list := slices.Collect(maps.Values(all))
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	return list, ctx.Err()
}

// Update changes the labels of a blob as change says, which gets them in a map
// of its own. NotFound; Invalid: a label is too long, or what change answers.
func (s *Set) Update(ctx context.Context, namespace string, d digest.Digest, change func(labels map[string]string) (map[string]string, error)) (Info, error) {
	own := lease.Resource{Kind: lease.Content, ID: d.String()}
	defer s.Leases.Hold(namespace, own)()
	defer s.locks.lock(resource{namespace, own})()
	info, err := s.Info(ctx, namespace, d)
	if err != nil {
		return Info{}, err
	}
	if info.Labels == nil {
		info.Labels = map[string]string{}
	}
	labels, err := change(info.Labels)
	if err != nil {
		return Info{}, err
	}
	if err := lease.CheckLabels(labels); err != nil {
		return Info{}, fmt.Errorf("content %s: %w", d, err)
	}
	info.Labels, info.Updated = lease.WithoutEmpty(labels), time.Now().UTC()
	defer s.hold(ctx, namespace, info.Labels)()
	err = s.DB.Update(ctx, func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, record(namespace, d), info) })
	if err != nil {
		return Info{}, fmt.Errorf("update content %s: %w", d, err)
	}
	s.mu.Lock()
	s.put(namespace, info)
	s.mu.Unlock()
	s.Leases.Trigger() // a label may have been the last reference
	return info.clone(), nil
}

// hold keeps what labels refer to, and gives it records.
func (s *Set) hold(ctx context.Context, namespace string, labels map[string]string) (release func()) {
	refs := lease.References(labels)
	release = s.Leases.Hold(namespace, refs...)
	for _, r := range refs {
		if r.Kind == lease.Content {
			s.Claim(ctx, namespace, digest.Digest(r.ID))
		}
	}
	return release
}

// Claim gives a blob of the node's own images a record, so that it stays when
// these go, as long as something in the namespace refers to it.
func (s *Set) Claim(ctx context.Context, namespace string, d digest.Digest) {
	if _, ok := s.recorded(namespace, d); ok {
		return
	}
	info, err := s.native(ctx, namespace, d)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.spaces[namespace][d]; ok || !s.Blobs.Has(d) {
		return
	}
	s.put(namespace, info)
	s.DB.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, record(namespace, d), info) })
}

// Delete takes a blob from a namespace. NotFound: it is not there. Conflict: an
// image of the node consists of it.
func (s *Set) Delete(ctx context.Context, namespace string, d digest.Digest) error {
	own := lease.Resource{Kind: lease.Content, ID: d.String()}
	defer s.locks.lock(resource{namespace, own})()
	if _, ok := s.recorded(namespace, d); !ok {
		if _, err := s.native(ctx, namespace, d); err != nil {
			return err
		}
		return errs.New(errs.Conflict, "content %s belongs to an image of this node: remove the image", d)
	}
	if err := s.forget(ctx, namespace, d); err != nil {
		return fmt.Errorf("delete content %s: %w", d, err)
	}
	s.Leases.Trigger()
	return nil
}

// forget removes a record. Its bytes are collected at another time.
func (s *Set) forget(ctx context.Context, namespace string, d digest.Digest) error {
	err := s.DB.Update(ctx, func(tx *kv.Tx) error { return tx.Delete(bucket, record(namespace, d)) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.take(namespace, d)
	s.mu.Unlock()
	s.Deleted(ctx, namespace, d)
	return nil
}

// Held says whether a namespace holds a blob.
func (s *Set) Held(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[d] > 0
}

// Drop deletes a blob that no image of the node needs, unless a namespace
// holds it. NotFound: it is not here.
func (s *Set) Drop(_ context.Context, d digest.Digest) (dropped bool, err error) {
	free, err := s.unlink(d)
	if free == nil || err != nil {
		return false, err
	}
	return true, free()
}

func (s *Set) unlink(d digest.Digest) (free func() error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[d] > 0 {
		return nil, nil
	}
	return s.Blobs.Take(d)
}

func (i Info) clone() Info {
	i.Labels = maps.Clone(i.Labels)
	return i
}

func record(namespace string, d digest.Digest) string { return namespace + "/" + d.String() }
