// Package images answers the CRI's ImageService: the images of one namespace of
// names, k8s.io, which clients of containerd's protocol see too.
package images

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/face/cri/wire"
	"berth/node/image"
	"berth/spec"
)

// Store holds the images; an image.Space is one. What is not there is
// errs.NotFound.
type Store interface {
	List() []image.Spaced
	Get(ref string) (image.Spaced, error)
	Pull(ctx context.Context, req image.SpacePull) (id string, err error)
	Remove(ctx context.Context, ref string) error
}

// Disk measures. It answers with what it measured a moment ago.
type Disk interface {
	Footprint(ctx context.Context) (image.Footprint, error)
}

// Config says what a Service works with.
type Config struct {
	Images Store
	Disk   Disk
	Path   string // that is on the file system of Images
	// Handler says whether there is a runtime of that name.
	Handler func(name string) error
	// Pinned says of a name whether the image is to stay when disk is wanted.
	Pinned func(name string) bool
	// Patience is how long nothing may come of a pull.
	Patience time.Duration
	Log      *slog.Logger
}

// Service is the ImageService.
type Service struct {
	cri.UnimplementedImageServiceServer
	Config
}

// New makes the service.
func New(c Config) *Service { return &Service{Config: c} }

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	wire.Register(r, &cri.ImageService_ServiceDesc, s)
}

// ListImages lists the images, or the one that a filter names.
func (s *Service) ListImages(_ context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	all, err := s.list(r.GetFilter())
	return &cri.ListImagesResponse{Images: all}, err
}

// StreamImages is ListImages in parts.
func (s *Service) StreamImages(r *cri.StreamImagesRequest, stream cri.ImageService_StreamImagesServer) error {
	all, err := s.list(r.GetFilter())
	if err != nil {
		return err
	}
	return wire.Stream(all, func(i *cri.Image) int { return proto.Size(i) }, func(part []*cri.Image) error {
		return stream.Send(&cri.StreamImagesResponse{Images: part})
	})
}

func (s *Service) list(f *cri.ImageFilter) ([]*cri.Image, error) {
	if ref := f.GetImage().GetImage(); ref != "" {
		one, err := s.get(ref)
		if one == nil || err != nil {
			return nil, err
		}
		return []*cri.Image{s.show(*one)}, nil
	}
	var all []*cri.Image
	for _, i := range s.Images.List() {
		all = append(all, s.show(i))
	}
	return all, nil
}

// get is nil where there is no such image.
func (s *Service) get(ref string) (*image.Spaced, error) {
	i, err := s.Images.Get(ref)
	switch {
	case errs.KindOf(err) == errs.NotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &i, nil
}

// ImageStatus tells of an image; of one that is not there it says nothing.
func (s *Service) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, errs.New(errs.Invalid, "image status: of which image")
	}
	i, err := s.get(ref)
	if i == nil || err != nil {
		return &cri.ImageStatusResponse{}, err
	}
	answer := &cri.ImageStatusResponse{Image: s.show(*i)}
	if r.GetVerbose() {
		answer.Info, err = info(*i)
	}
	return answer, err
}

// PullImage fetches an image.
func (s *Service) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, errs.New(errs.Invalid, "pull: which image")
	}
	if err := s.Handler(r.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	auth, err := credentials(r.GetAuth(), ref)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{managedLabel: "managed"}
	if s.Pinned(ref) {
		labels[PinnedLabel] = pinned
	}
	id, err := s.Images.Pull(ctx, image.SpacePull{
		PullRequest: spec.PullRequest{Reference: ref, Auth: auth}, Labels: labels, Patience: s.Patience,
	})
	return &cri.PullImageResponse{ImageRef: id}, err
}

// RemoveImage takes an image away with all its names. None is no error.
func (s *Service) RemoveImage(ctx context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, errs.New(errs.Invalid, "remove: which image")
	}
	err := s.Images.Remove(ctx, ref)
	if errs.KindOf(err) == errs.NotFound {
		err = nil
	}
	return &cri.RemoveImageResponse{}, err
}

// ImageFsInfo says what images take, and what containers wrote.
func (s *Service) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	f, err := s.Disk.Footprint(ctx)
	if err != nil {
		return nil, err
	}
	of := func(bytes, inodes int64) []*cri.FilesystemUsage {
		return []*cri.FilesystemUsage{{
			Timestamp: f.At.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: s.Path},
			UsedBytes: &cri.UInt64Value{Value: uint64(max(bytes, 0))}, InodesUsed: &cri.UInt64Value{Value: uint64(max(inodes, 0))},
		}}
	}
	return &cri.ImageFsInfoResponse{ImageFilesystems: of(f.Bytes, f.Inodes), ContainerFilesystems: of(f.Written, f.WrittenNodes)}, nil
}
