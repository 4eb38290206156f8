// Package catalog maps the names of images to what they stand for. The
// truth is in memory; bucket "image" of the database is its durable copy,
// one record a name under the name's full form.
//
// Those are the names of the node's own images. Other namespaces have names of
// their own, in bucket "image.space" under "<namespace>/<name>": see In.
package catalog

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/base/kv"
)

const (
	bucket      = "image"
	spaceBucket = "image.space"
	// oldImage is where records of old have Image.
	oldImage = "berth.image"
)

// Record is one name.
type Record struct {
	// Name is in full form: docker.io/library/alpine:3.20. A client that gives
	// it may call it anything.
	Name string `json:"name"`
	// Image is the ID of the node's image that the name stands for, if any.
	Image string `json:"image,omitempty"`
	// Target is an index or a manifest.
	Target  ocispec.Descriptor `json:"target"`
	Labels  map[string]string  `json:"labels,omitempty"`
	Created time.Time          `json:"created"`
	// Updated is when the name last came to stand for Target.
	Updated time.Time `json:"updated"`
}

// Catalog holds the records of one namespace. Safe for concurrent use.
type Catalog struct {
	db             *kv.DB
	bucket, prefix string
	spaces         *spaces // of all but the node's own

	write sync.Mutex // one change at a time, so that memory and disk agree
	mu    sync.RWMutex
	names map[string]Record
}

type spaces struct {
	mu  sync.Mutex
	all map[string]*Catalog
}

// Open loads the catalog from db.
func Open(db *kv.DB) (*Catalog, error) {
	c := &Catalog{db: db, bucket: bucket, names: map[string]Record{}, spaces: &spaces{all: map[string]*Catalog{}}}
	err := db.View(func(tx *kv.Tx) error {
		err := kv.EachJSON(tx, bucket, "", func(name string, r Record) error {
			if id, old := r.Labels[oldImage]; old {
				r.Image = id
				delete(r.Labels, oldImage)
			}
			c.names[name] = r
			return nil
		})
		if err != nil {
			return err
		}
		return kv.EachJSON(tx, spaceBucket, "", func(key string, r Record) error {
			namespace, _, _ := strings.Cut(key, "/")
			c.In(namespace).names[r.Name] = r
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("open image catalog: %w", err)
	}
	return c, nil
}

// In is the catalog of another namespace, which is there as soon as it is asked
// for. c is that of the node's own images.
func (c *Catalog) In(namespace string) *Catalog {
	c.spaces.mu.Lock()
	defer c.spaces.mu.Unlock()
	in := c.spaces.all[namespace]
	if in == nil {
		in = &Catalog{db: c.db, bucket: spaceBucket, prefix: namespace + "/", names: map[string]Record{}, spaces: c.spaces}
		c.spaces.all[namespace] = in
	}
	return in
}

// Namespaces lists the other namespaces that have names.
func (c *Catalog) Namespaces() []string {
	c.spaces.mu.Lock()
	defer c.spaces.mu.Unlock()
	var all []string
	for namespace, in := range c.spaces.all {
		if in.Len() > 0 {
			all = append(all, namespace)
		}
	}
	slices.Sort(all)
	return all
}

// Len is how many names there are.
func (c *Catalog) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.names)
}

// Get returns the record of a full name, or errs.NotFound.
func (c *Catalog) Get(name string) (Record, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.names[name]
	if !ok {
		return Record{}, errs.New(errs.NotFound, "no image is called %s", name)
	}
	return clone(r), nil
}

// List returns all records, by name.
func (c *Catalog) List() []Record {
	c.mu.RLock()
	defer c.mu.RUnlock()
	all := make([]Record, 0, len(c.names))
	for _, r := range c.names {
		all = append(all, clone(r))
	}
	slices.SortFunc(all, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// NamesOf returns the names that stand for target, sorted.
func (c *Catalog) NamesOf(target digest.Digest) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var names []string
	for name, r := range c.names {
		if r.Target.Digest == target {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Change is a set of changes that happen together or not at all.
type Change struct {
	// Set gives names their records; Created and Updated are filled in where
	// zero. A name that exists is moved.
	Set []Record
	// Delete takes names away; those that do not exist are passed over.
	Delete []string
	// Also runs in the same transaction, for what must agree with the names.
	// Like every transaction's function it may run twice.
	Also func(*kv.Tx) error
}

// Apply makes a change. It is durable when Apply returns.
func (c *Catalog) Apply(ctx context.Context, ch Change) error {
	c.write.Lock()
	defer c.write.Unlock()
	set, err := c.complete(ch.Set)
	if err != nil {
		return err
	}
	err = c.db.Update(ctx, func(tx *kv.Tx) error { return c.store(tx, set, ch) })
	if err != nil {
		return fmt.Errorf("change image catalog: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range ch.Delete {
		delete(c.names, name)
	}
	for _, r := range set {
		c.names[r.Name] = r
	}
	return nil
}

// complete fills in the times.
func (c *Catalog) complete(set []Record) ([]Record, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	now := time.Now()
	full := make([]Record, 0, len(set))
	for _, r := range set {
		if r.Name == "" || r.Target.Digest.Validate() != nil {
			return nil, errs.New(errs.Invalid, "an image name needs a target: %q → %q", r.Name, r.Target.Digest)
		}
		old, had := c.names[r.Name]
		if r.Created.IsZero() {
			r.Created = now
			if had {
				r.Created = old.Created
			}
		}
		if r.Updated.IsZero() {
			r.Updated = now
			if had && old.Target.Digest == r.Target.Digest {
				r.Updated = old.Updated
			}
		}
		full = append(full, clone(r))
	}
	return full, nil
}

func (c *Catalog) store(tx *kv.Tx, set []Record, ch Change) error {
	for _, name := range ch.Delete {
		if err := tx.Delete(c.bucket, c.prefix+name); err != nil {
			return err
		}
	}
	for _, r := range set {
		if err := kv.PutJSON(tx, c.bucket, c.prefix+r.Name, r); err != nil {
			return err
		}
	}
	if ch.Also != nil {
		return ch.Also(tx)
	}
	return nil
}

// clone keeps callers from changing the map they share with us.
func clone(r Record) Record {
	r.Labels, r.Target.Annotations = maps.Clone(r.Labels), maps.Clone(r.Target.Annotations)
	return r
}
