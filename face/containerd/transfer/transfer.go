// Package transfer answers containerd's transfer service: images move between
// registries, archives and the images of a namespace.
//
// What a source and a destination are, and how registries and archives are
// spoken with, is containerd's own library; so is what only reads images (push,
// export, tag). What brings images in is done here, for the layers: they go to
// the node's images' puller, which fetches and unpacks them in one pass, side
// by side, each once for all namespaces.
package transfer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	api "github.com/containerd/containerd/api/services/transfer/v1"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/local"
	"github.com/containerd/containerd/v2/core/transfer/plugins"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/face/containerd/quiet"
	"berth/face/containerd/wire"
	nodeimage "berth/node/image"
	"berth/node/snapshot"
	"berth/spec"
)

// Layers unpacks layers of images, as nodeimage.Set does.
type Layers interface {
	Unpack(ctx context.Context, parts []nodeimage.Part, source nodeimage.Source, progress func(spec.Progress)) (top snapshot.Key, release func(), err error)
}

// Snapshots gives a layer a name in a namespace and snapshotter, where it has
// none.
type Snapshots interface {
	Layer(ctx context.Context, namespace, snapshotter, key string) (snapshot.Key, error)
}

// Config says on what the Service stands. The stores are those of the context's
// namespace.
type Config struct {
	Content   content.Store
	Images    images.Store
	Leases    leases.Manager
	Streams   streaming.StreamGetter
	Layers    Layers
	Snapshots Snapshots
	// Snapshotters are the names that layers can be unpacked for; the first is
	// the usual one.
	Snapshotters []string
	// HostDirs are folders with a folder for each registry. The first that is
	// there is used where a client names none.
	HostDirs []string
	Log      *slog.Logger
}

// Service is the transfer service.
type Service struct {
	api.UnimplementedTransferServer
	Config
	library transfer.Transferrer
}

// New makes the service.
func New(c Config) *Service {
	return &Service{Config: c, library: local.NewTransferService(c.Content, c.Images, local.TransferConfig{Leases: c.Leases})}
}

// Register makes the service one of server's.
func (s *Service) Register(server grpc.ServiceRegistrar) { api.RegisterTransferServer(server, s) }

// Transfer moves an image. When the client goes, it ends.
func (s *Service) Transfer(ctx context.Context, r *api.TransferRequest) (*emptypb.Empty, error) {
	if err := s.transfer(ctx, r); err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

func (s *Service) transfer(ctx context.Context, r *api.TransferRequest) error {
	if _, err := wire.Namespace(ctx); err != nil {
		return err
	}
	ctx = quiet.Context(ctx, s.Log)
	say, done, err := s.progress(ctx, r.GetOptions().GetProgressStream())
	if err != nil {
		return err
	}
	defer done()
	source, err := s.resolve(ctx, s.withHosts(r.Source))
	if err != nil {
		return err
	}
	destination, err := s.resolve(ctx, s.withHosts(r.Destination))
	if err != nil {
		return err
	}
	if to, ok := destination.(*exporting); ok {
		defer to.out.drop()
	}
	ctx, end, err := s.lease(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = s.move(ctx, source, destination, say)
	if errdefs.IsNotImplemented(err) {
		return errs.New(errs.Unsupported, "cannot transfer from %s to %s: %w", r.Source.GetTypeUrl(), r.Destination.GetTypeUrl(), err)
	}
	return err
}

func (s *Service) move(ctx context.Context, source, destination any, say transfer.ProgressFunc) error {
	if to, ok := destination.(*image.Store); ok {
		switch from := source.(type) {
		case *registry.OCIRegistry:
			return s.pull(ctx, from, to, say)
		case *archive.ImageImportStream:
			return s.load(ctx, from, to, say)
		}
	}
	var opts []transfer.Opt
	if say != nil {
		opts = append(opts, transfer.WithProgress(say))
	}
	if to, ok := destination.(*exporting); ok {
		err := s.library.Transfer(ctx, source, to.ImageExportStream, opts...)
		if err == nil {
			err = to.out.Close()
		}
		return err
	}
	return s.library.Transfer(ctx, source, destination, opts...)
}

// progress opens the stream that progress is to be told on; say is nil where
// nobody wants to know.
func (s *Service) progress(ctx context.Context, id string) (say transfer.ProgressFunc, done func(), err error) {
	if id == "" {
		return nil, func() {}, nil
	}
	stream, err := s.Streams.Get(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	var told atomic.Int64 // when, in nanoseconds
	say = func(p transfer.Progress) {
		message := &transfertypes.Progress{Event: p.Event, Name: p.Name, Parents: p.Parents, Progress: p.Progress, Total: p.Total}
		if p.Desc != nil {
			message.Desc = oci.DescriptorToProto(*p.Desc)
		}
		packed, err := wire.Pack(message)
		if err == nil {
			err = stream.Send(packed)
		}
		if err != nil { // the transfer itself is what matters
			s.Log.DebugContext(ctx, "progress was not told", "event", p.Event, "error", err)
		}
		told.Store(time.Now().UnixNano())
	}
	return say, func() {
		_ = stream.Close()
		snapshot.Rest(ctx, time.Until(time.Unix(0, told.Load()).Add(reading)))
	}, nil
}

// reading is how long a client gets to hear what was told last before the call
// is answered: it listens no longer then, and cannot say that it has heard.
const reading = 25 * time.Millisecond

// resolve makes a source or a destination of a message.
func (s *Service) resolve(ctx context.Context, message *anypb.Any) (any, error) {
	if message == nil {
		return nil, errs.New(errs.Invalid, "a transfer needs a source and a destination")
	}
	if typeurl.Is(message, &transfertypes.ImageExportStream{}) {
		return s.exported(ctx, message)
	}
	party, err := plugins.ResolveType(message)
	if errdefs.IsNotFound(err) {
		return nil, errs.New(errs.Unsupported, "no transfer is known from or to %q", message.GetTypeUrl())
	}
	if err != nil {
		return nil, err
	}
	if streamed, ok := party.(interface {
		UnmarshalAny(ctx context.Context, streams streaming.StreamGetter, message typeurl.Any) error
	}); ok {
		err = streamed.UnmarshalAny(ctx, s.Streams, message)
	} else {
		err = typeurl.UnmarshalTo(message, party)
	}
	if err != nil && errs.KindOf(err) == errs.Internal && !errdefs.IsNotFound(err) {
		err = errs.New(errs.Invalid, "%s: %w", message.GetTypeUrl(), err)
	}
	return party, err
}

// withHosts has the node's folders used for a registry, where the client names
// none.
func (s *Service) withHosts(message *anypb.Any) *anypb.Any {
	var party transfertypes.OCIRegistry
	if message == nil || !typeurl.Is(message, &party) || typeurl.UnmarshalTo(message, &party) != nil {
		return message
	}
	if party.Resolver == nil {
		party.Resolver = &transfertypes.RegistryResolver{}
	}
	for _, dir := range s.HostDirs {
		if _, err := os.Stat(dir); err != nil || party.Resolver.HostDir != "" {
			continue
		}
		party.Resolver.HostDir = dir
	}
	packed, err := wire.Pack(&party)
	if err != nil {
		return message
	}
	packed.TypeUrl = message.TypeUrl
	return packed
}

// lease lasts for a day if this process should not live to end it. One of the
// client's own serves as well.
func (s *Service) lease(ctx context.Context) (_ context.Context, end func(), err error) {
	if _, ok := leases.FromContext(ctx); ok {
		return ctx, func() {}, nil
	}
	made, err := s.Leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(24*time.Hour))
	if err != nil {
		return nil, nil, fmt.Errorf("transfer: %w", err)
	}
	ctx = leases.WithLease(ctx, made.ID)
	return ctx, func() {
		if err := s.Leases.Delete(context.WithoutCancel(ctx), made); err != nil && !errdefs.IsNotFound(err) {
			s.Log.WarnContext(ctx, "the lease of a transfer goes only when it expires", "lease", made.ID, "error", err)
		}
	}, nil
}
