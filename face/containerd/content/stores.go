package content

import (
	"context"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	cleases "github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/face/containerd/wire"
	rooms "berth/node/content"
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
