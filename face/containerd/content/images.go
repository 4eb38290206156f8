package content

import (
	"context"
	"maps"
	"strings"
	"time"

	api "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/image/catalog"
	"berth/node/lease"
)

// images is containerd.services.images.v1.
type images struct {
	api.UnimplementedImagesServer
	Config
}

// Get implements ImagesServer.
func (s *images) Get(ctx context.Context, req *api.GetImageRequest) (*api.GetImageResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	rec, err := s.Images.Name(namespace, req.GetName())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.GetImageResponse{Image: imageToWire(rec)}, nil
}

// List implements ImagesServer.
func (s *images) List(ctx context.Context, req *api.ListImagesRequest) (*api.ListImagesResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	fits, err := filter(req.GetFilters(), nameFields)
	if err != nil {
		return nil, wire.Error(err)
	}
	answer := &api.ListImagesResponse{}
	for _, rec := range s.Images.Names(namespace) {
		if fits(rec) {
			answer.Images = append(answer.Images, imageToWire(rec))
		}
	}
	return answer, nil
}

// Create implements ImagesServer.
func (s *images) Create(ctx context.Context, req *api.CreateImageRequest) (*api.CreateImageResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	rec := recordOf(req.GetImage())
	rec.Created = momentOf(req.GetSourceDateEpoch())
	rec.Updated = rec.Created
	rec, err = s.Images.CreateName(ctx, namespace, wire.Lease(ctx), rec)
	if err != nil {
		return nil, wire.Error(err)
	}
	s.watchExpiry(rec)
	return &api.CreateImageResponse{Image: imageToWire(rec)}, nil
}

// Update implements ImagesServer.
func (s *images) Update(ctx context.Context, req *api.UpdateImageRequest) (*api.UpdateImageResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	if req.GetImage().GetName() == "" {
		return nil, wire.Error(errs.New(errs.Invalid, "Image.Name required"))
	}
	given := recordOf(req.GetImage())
	rec, err := s.Images.UpdateName(ctx, namespace, wire.Lease(ctx), given.Name, func(rec catalog.Record) (catalog.Record, error) {
		rec.Updated = momentOf(req.GetSourceDateEpoch())
		return changeImage(rec, given, req.GetUpdateMask().GetPaths())
	})
	if err != nil {
		return nil, wire.Error(err)
	}
	s.watchExpiry(rec)
	return &api.UpdateImageResponse{Image: imageToWire(rec)}, nil
}

// changeImage lays the named fields of given over rec, or all that can be
// changed.
func changeImage(rec, given catalog.Record, fields []string) (catalog.Record, error) {
	if len(fields) == 0 {
		rec.Target, rec.Labels = given.Target, given.Labels
		return rec, nil
	}
	for _, field := range fields {
		label, isLabel := strings.CutPrefix(field, "labels.")
		annotation, isAnnotation := strings.CutPrefix(field, "annotations.")
		switch {
		case isLabel:
			rec.Labels = with(rec.Labels, label, given.Labels[label])
		case isAnnotation:
			rec.Target.Annotations = with(rec.Target.Annotations, annotation, given.Target.Annotations[annotation])
		case field == "labels":
			rec.Labels = maps.Clone(given.Labels)
		case field == "target":
			rec.Target = given.Target
			rec.Target.Annotations = maps.Clone(given.Target.Annotations)
		case field == "annotations":
			rec.Target.Annotations = maps.Clone(given.Target.Annotations)
		default:
			return rec, errs.New(errs.Invalid, "cannot update %q field on image %q", field, rec.Name)
		}
	}
	return rec, nil
}

func with(m map[string]string, name, value string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[name] = value
	return m
}

// Delete implements ImagesServer. With Sync what only this image needed is gone
// when it answers.
func (s *images) Delete(ctx context.Context, req *api.DeleteImageRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	err = s.Images.DeleteName(ctx, namespace, req.GetName(), digest.Digest(req.GetTarget().GetDigest()))
	if err == nil && req.GetSync() {
		err = s.Leases.Collect(ctx)
	}
	if err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// watchExpiry has the collector learn when a name ends.
func (s *images) watchExpiry(rec catalog.Record) {
	if _, expires := lease.Expires(rec.Labels); expires {
		s.Leases.Trigger()
	}
}

// momentOf is now, unless the client has another idea of it.
func momentOf(given *timestamppb.Timestamp) time.Time {
	if given == nil {
		return time.Now().UTC()
	}
	return given.AsTime()
}

func recordOf(i *api.Image) catalog.Record {
	return catalog.Record{Name: i.GetName(), Labels: i.GetLabels(), Target: descriptorOf(i.GetTarget())}
}

func imageToWire(rec catalog.Record) *api.Image {
	return &api.Image{
		Name: rec.Name, Labels: rec.Labels, Target: descriptorToWire(rec.Target),
		CreatedAt: timestamppb.New(rec.Created), UpdatedAt: timestamppb.New(rec.Updated),
	}
}

func descriptorOf(d *types.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: d.GetMediaType(), Digest: digest.Digest(d.GetDigest()), Size: d.GetSize(), Annotations: d.GetAnnotations(),
	}
}

func descriptorToWire(d ocispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}
