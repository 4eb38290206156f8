package content

import (
	"context"
	"crypto/rand"
	"slices"

	cimages "github.com/containerd/containerd/v2/core/images"
	cleases "github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"

	"berth/face/containerd/wire"
	"berth/image/catalog"
	"berth/node/lease"
)

type imageStore struct{ Config }

// Get implements images.Store.
func (s imageStore) Get(ctx context.Context, name string) (cimages.Image, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return cimages.Image{}, native(err)
	}
	rec, err := s.Images.Name(namespace, name)
	return imageToNative(rec), native(err)
}

// List implements images.Store.
func (s imageStore) List(ctx context.Context, all ...string) ([]cimages.Image, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, native(err)
	}
	fits, err := filter(all, nameFields)
	if err != nil {
		return nil, native(err)
	}
	var list []cimages.Image
	for _, rec := range s.Images.Names(namespace) {
		if fits(rec) {
			list = append(list, imageToNative(rec))
		}
	}
	return list, nil
}

// Create implements images.Store.
func (s imageStore) Create(ctx context.Context, i cimages.Image) (cimages.Image, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return cimages.Image{}, native(err)
	}
	rec := catalog.Record{Name: i.Name, Labels: i.Labels, Target: i.Target, Created: momentOf(nil)}
	rec.Updated = rec.Created
	rec, err = s.Images.CreateName(ctx, namespace, wire.Lease(ctx), rec)
	return imageToNative(rec), native(err)
}

// Update implements images.Store.
func (s imageStore) Update(ctx context.Context, i cimages.Image, fields ...string) (cimages.Image, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return cimages.Image{}, native(err)
	}
	given := catalog.Record{Name: i.Name, Labels: i.Labels, Target: i.Target}
	rec, err := s.Images.UpdateName(ctx, namespace, wire.Lease(ctx), i.Name, func(rec catalog.Record) (catalog.Record, error) {
		rec.Updated = momentOf(nil)
		return changeImage(rec, given, fields)
	})
	return imageToNative(rec), native(err)
}

// Delete implements images.Store.
func (s imageStore) Delete(ctx context.Context, name string, opts ...cimages.DeleteOpt) error {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return native(err)
	}
	var o cimages.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	var target digest.Digest
	if o.Target != nil {
		target = o.Target.Digest
	}
	err = s.Images.DeleteName(ctx, namespace, name, target)
	if err == nil && o.Synchronous {
		err = s.Leases.Collect(ctx)
	}
	return native(err)
}

func imageToNative(r catalog.Record) cimages.Image {
	return cimages.Image{Name: r.Name, Labels: r.Labels, Target: r.Target, CreatedAt: r.Created, UpdatedAt: r.Updated}
}

type leaseManager struct{ Config }

// Create implements leases.Manager.
func (m leaseManager) Create(ctx context.Context, opts ...cleases.Opt) (cleases.Lease, error) {
	var l cleases.Lease
	for _, opt := range opts {
		if err := opt(&l); err != nil {
			return l, err
		}
	}
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return l, native(err)
	}
	if l.ID == "" {
		l.ID = rand.Text()
	}
	made, err := m.Leases.Create(ctx, namespace, l.ID, l.Labels)
	return leaseToNative(made), native(err)
}

// Delete implements leases.Manager.
func (m leaseManager) Delete(ctx context.Context, l cleases.Lease, opts ...cleases.DeleteOpt) error {
	var o cleases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return native(err)
	}
	err = m.Leases.Delete(ctx, namespace, l.ID)
	if err == nil && o.Synchronous {
		err = m.Leases.Collect(ctx)
	}
	return native(err)
}

// List implements leases.Manager.
func (m leaseManager) List(ctx context.Context, all ...string) ([]cleases.Lease, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, native(err)
	}
	fits, err := filter(all, leaseFields)
	if err != nil {
		return nil, native(err)
	}
	var list []cleases.Lease
	for _, l := range m.Leases.List(namespace) {
		if fits(l) {
			list = append(list, leaseToNative(l))
		}
	}
	return list, nil
}

// AddResource implements leases.Manager.
func (m leaseManager) AddResource(ctx context.Context, l cleases.Lease, r cleases.Resource) error {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return native(err)
	}
	return native(m.addResource(ctx, namespace, l.ID, lease.Resource{Kind: r.Type, ID: r.ID}))
}

// DeleteResource implements leases.Manager.
func (m leaseManager) DeleteResource(ctx context.Context, l cleases.Lease, r cleases.Resource) error {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return native(err)
	}
	return native(m.Leases.Drop(ctx, namespace, l.ID, lease.Resource{Kind: r.Type, ID: r.ID}))
}

// ListResources implements leases.Manager.
func (m leaseManager) ListResources(ctx context.Context, l cleases.Lease) ([]cleases.Resource, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, native(err)
	}
	all, err := m.Leases.Resources(namespace, l.ID)
	list := make([]cleases.Resource, len(all))
	for i, r := range all {
		list[i] = cleases.Resource{ID: r.ID, Type: r.Kind}
	}
	return slices.Clip(list), native(err)
}

func leaseToNative(l lease.Lease) cleases.Lease {
	return cleases.Lease{ID: l.ID, CreatedAt: l.Created, Labels: l.Labels}
}
