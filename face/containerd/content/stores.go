package content

import (
	"context"
	"crypto/rand"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	cleases "github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/image/catalog"
	rooms "berth/node/content"
	"berth/node/lease"
)

// Stores are the rooms as containerd's own interfaces, for what of its library
// works on them. Namespace and lease are those of the context, and errors are
// of containerd's kinds.
type Stores struct {
	Content content.Store
	Images  cimages.Store
	Leases  cleases.Manager
}

// NewStores returns them.
func NewStores(c Config) Stores {
	return Stores{Content: contentStore{c}, Images: imageStore{c}, Leases: leaseManager{c}}
}

// native gives an error the kind that containerd's callers look for.
func native(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(wire.Error(err))
}

type contentStore struct{ Config }

// Info implements content.Manager.
func (s contentStore) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return content.Info{}, native(err)
	}
	info, err := s.Content.Info(ctx, namespace, d)
	return infoToNative(info), native(err)
}

// Update implements content.Manager.
func (s contentStore) Update(ctx context.Context, given content.Info, fields ...string) (content.Info, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return content.Info{}, native(err)
	}
	info, err := s.Content.Update(ctx, namespace, given.Digest, func(labels map[string]string) (map[string]string, error) {
		return changeLabels(labels, given.Labels, fields)
	})
	return infoToNative(info), native(err)
}

// Walk implements content.Manager.
func (s contentStore) Walk(ctx context.Context, fn content.WalkFunc, all ...string) error {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return native(err)
	}
	fits, err := filter(all, infoFields)
	if err != nil {
		return native(err)
	}
	infos, err := s.Content.List(ctx, namespace)
	if err != nil {
		return native(err)
	}
	for _, info := range infos {
		if !fits(info) {
			continue
		}
		if err := fn(infoToNative(info)); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements content.Manager.
func (s contentStore) Delete(ctx context.Context, d digest.Digest) error {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return native(err)
	}
	return native(s.Content.Delete(ctx, namespace, d))
}

// ReaderAt implements content.Provider.
func (s contentStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, native(err)
	}
	f, err := s.Content.Open(ctx, namespace, desc.Digest)
	if err != nil {
		return nil, native(err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return sized{f, st.Size()}, nil
}

// sized is a file that does not change.
type sized struct {
	*os.File
	size int64
}

func (s sized) Size() int64 { return s.size }

// Status implements content.IngestManager.
func (s contentStore) Status(ctx context.Context, ref string) (content.Status, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return content.Status{}, native(err)
	}
	st, err := s.Content.Status(ctx, namespace, ref)
	return statusToNative(st), native(err)
}

// ListStatuses implements content.IngestManager.
func (s contentStore) ListStatuses(ctx context.Context, all ...string) ([]content.Status, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, native(err)
	}
	fits, err := filter(all, statusFields)
	if err != nil {
		return nil, native(err)
	}
	var list []content.Status
	for _, st := range s.Content.Statuses(ctx, namespace) {
		if fits(st) {
			list = append(list, statusToNative(st))
		}
	}
	return list, nil
}

// Abort implements content.IngestManager.
func (s contentStore) Abort(ctx context.Context, ref string) error {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return native(err)
	}
	return native(s.Content.Abort(ctx, namespace, wire.Lease(ctx), ref))
}

// Writer implements content.Ingester.
func (s contentStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, native(err)
	}
	w, err := s.Content.Writer(ctx, namespace, rooms.WriteRequest{Ref: o.Ref, Total: o.Desc.Size, Expected: o.Desc.Digest, Lease: wire.Lease(ctx)})
	if err != nil {
		return nil, native(err)
	}
	return &contentWriter{ctx: ctx, w: w}, nil
}

// contentWriter is a writer of the context that opened it, as io.Writer has no
// room for one.
type contentWriter struct {
	ctx context.Context //nolint:containedctx // one writer is one request
	w   *rooms.Writer
}

func (c *contentWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(c.ctx, p)
	return n, native(err)
}

func (c *contentWriter) Close() error                    { return native(c.w.Close()) }
func (c *contentWriter) Digest() digest.Digest           { return c.w.Digest() }
func (c *contentWriter) Status() (content.Status, error) { return statusToNative(c.w.Status()), nil }

func (c *contentWriter) Truncate(size int64) error {
	if size != 0 {
		return native(errs.New(errs.Unsupported, "truncate to %d: only to 0", size))
	}
	return native(c.w.Truncate(c.ctx))
}

func (c *contentWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	var info content.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	_, err := c.w.Commit(ctx, size, expected, info.Labels)
	return native(err)
}

func infoToNative(i rooms.Info) content.Info {
	return content.Info{Digest: i.Digest, Size: i.Size, CreatedAt: i.Created, UpdatedAt: i.Updated, Labels: i.Labels}
}

func statusToNative(st rooms.Status) content.Status {
	return content.Status{Ref: st.Ref, Offset: st.Offset, Total: st.Total, Expected: st.Expected, StartedAt: st.Started, UpdatedAt: st.Updated}
}

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
	return native(m.Config.addResource(ctx, namespace, l.ID, lease.Resource{Kind: r.Type, ID: r.ID}))
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
