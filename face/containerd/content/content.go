package content

import (
	"context"
	"maps"
	"strings"

	api "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/content"
)

// contents is containerd.services.content.v1.
type contents struct {
	api.UnimplementedContentServer
	Config
}

// listed is how many blobs one message of a list has.
const listed = 100

// Info implements ContentServer.
func (s *contents) Info(ctx context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	d, err := digestOf(req.GetDigest())
	if err != nil {
		return nil, wire.Error(err)
	}
	info, err := s.Content.Info(ctx, namespace, d)
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.InfoResponse{Info: infoToWire(info)}, nil
}

// Update implements ContentServer.
func (s *contents) Update(ctx context.Context, req *api.UpdateRequest) (*api.UpdateResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	d, err := digestOf(req.GetInfo().GetDigest())
	if err != nil {
		return nil, wire.Error(err)
	}
	info, err := s.Content.Update(ctx, namespace, d, func(labels map[string]string) (map[string]string, error) {
		return changeLabels(labels, req.GetInfo().GetLabels(), req.GetUpdateMask().GetPaths())
	})
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.UpdateResponse{Info: infoToWire(info)}, nil
}

// changeLabels is all labels where no field is named.
func changeLabels(labels, given map[string]string, fields []string) (map[string]string, error) {
	if len(fields) == 0 {
		return given, nil
	}
	for _, field := range fields {
		name, one := strings.CutPrefix(field, "labels.")
		switch {
		case one:
			labels[name] = given[name]
		case field == "labels":
			labels = copied(given)
		default:
			return nil, errs.New(errs.Invalid, "cannot update %q field on content info", field)
		}
	}
	return labels, nil
}

func copied(m map[string]string) map[string]string {
	c := make(map[string]string, len(m))
	maps.Copy(c, m)
	return c
}

// List implements ContentServer.
func (s *contents) List(req *api.ListContentRequest, stream api.Content_ListServer) error {
	return wire.Error(s.list(req, stream))
}

func (s *contents) list(req *api.ListContentRequest, stream api.Content_ListServer) error {
	namespace, err := wire.Namespace(stream.Context())
	if err != nil {
		return err
	}
	fits, err := filter(req.GetFilters(), infoFields)
	if err != nil {
		return err
	}
	all, err := s.Content.List(stream.Context(), namespace)
	if err != nil {
		return err
	}
	var block []*api.Info
	for _, info := range all {
		if fits(info) {
			block = append(block, infoToWire(info))
		}
		if len(block) == listed {
			if err := stream.Send(&api.ListContentResponse{Info: block}); err != nil {
				return err
			}
			block = nil
		}
	}
	if len(block) == 0 {
		return nil
	}
	return stream.Send(&api.ListContentResponse{Info: block})
}

// Delete implements ContentServer.
func (s *contents) Delete(ctx context.Context, req *api.DeleteContentRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	d, err := digestOf(req.GetDigest())
	if err != nil {
		return nil, wire.Error(err)
	}
	if err := s.Content.Delete(ctx, namespace, d); err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// Status implements ContentServer.
func (s *contents) Status(ctx context.Context, req *api.StatusRequest) (*api.StatusResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	status, err := s.Content.Status(ctx, namespace, req.GetRef())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.StatusResponse{Status: statusToWire(status)}, nil
}

// ListStatuses implements ContentServer.
func (s *contents) ListStatuses(ctx context.Context, req *api.ListStatusesRequest) (*api.ListStatusesResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	fits, err := filter(req.GetFilters(), statusFields)
	if err != nil {
		return nil, wire.Error(err)
	}
	answer := &api.ListStatusesResponse{}
	for _, status := range s.Content.Statuses(ctx, namespace) {
		if fits(status) {
			answer.Statuses = append(answer.Statuses, statusToWire(status))
		}
	}
	return answer, nil
}

// Abort implements ContentServer.
func (s *contents) Abort(ctx context.Context, req *api.AbortRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	if err := s.Content.Abort(ctx, namespace, wire.Lease(ctx), req.GetRef()); err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

func infoToWire(info content.Info) *api.Info {
	return &api.Info{
		Digest: info.Digest.String(), Size: info.Size, Labels: info.Labels,
		CreatedAt: timestamppb.New(info.Created), UpdatedAt: timestamppb.New(info.Updated),
	}
}

func statusToWire(st content.Status) *api.Status {
	return &api.Status{
		Ref: st.Ref, Offset: st.Offset, Total: st.Total, Expected: st.Expected.String(),
		StartedAt: timestamppb.New(st.Started), UpdatedAt: timestamppb.New(st.Updated),
	}
}
