package content

import (
	"context"
	"errors"
	"io"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/content"
	"berth/node/lease"
)

// Write implements ContentServer. The first message opens an ingest, which is
// this stream's until it ends; each message is answered by one.
func (s *contents) Write(stream api.Content_WriteServer) error {
	return wire.Error(s.write(stream))
}

func (s *contents) write(stream api.Content_WriteServer) (err error) {
	ctx := stream.Context()
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return err
	}
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	if req.GetRef() == "" {
		return status.Error(codes.InvalidArgument, "first message must have a reference")
	}
	w := &writing{Config: s.Config, namespace: namespace, lease: wire.Lease(ctx), ref: req.GetRef(), expected: digest.Digest(req.GetExpected()), total: req.GetTotal()}
	w.Writer, err = s.Content.Writer(ctx, namespace, content.WriteRequest{Ref: w.ref, Total: w.total, Expected: w.expected, Lease: w.lease})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for {
		answer, err := w.handle(ctx, req)
		if err != nil {
			return err
		}
		if err := stream.Send(answer); err != nil || req.GetAction() == api.WriteAction_COMMIT {
			return err
		}
		if req, err = stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// writing is one stream.
type writing struct {
	Config
	*content.Writer
	namespace, lease, ref string
	total                 int64
	expected              digest.Digest // what was said last
}

func (w *writing) handle(ctx context.Context, req *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if err := w.expect(ctx, req); err != nil {
		return nil, err
	}
	st := w.Status()
	answer := &api.WriteContentResponse{Action: req.GetAction(), Offset: st.Offset}
	switch req.GetAction() {
	case api.WriteAction_STAT:
		answer.Digest, answer.Total = w.Digest().String(), w.total
		answer.StartedAt, answer.UpdatedAt = timestamppb.New(st.Started), timestamppb.New(st.Updated)
		return answer, nil
	case api.WriteAction_WRITE, api.WriteAction_COMMIT:
	default:
		return answer, nil
	}
	switch {
	case req.GetOffset() > 0 && req.GetOffset() != st.Offset:
		return nil, status.Errorf(codes.OutOfRange, "write @%d must occur at current offset %d", req.GetOffset(), st.Offset)
	case req.GetOffset() < 0:
		return nil, status.Errorf(codes.OutOfRange, "write @%d", req.GetOffset())
	case req.GetOffset() == 0 && st.Offset > 0:
		if err := w.Truncate(ctx); err != nil {
			return nil, err
		}
	}
	if len(req.GetData()) > 0 {
		if _, err := w.Write(ctx, req.GetData()); err != nil {
			return nil, err
		}
	}
	answer.Offset = w.Status().Offset
	if req.GetAction() == api.WriteAction_COMMIT {
		info, err := w.Commit(ctx, w.total, w.expected, req.GetLabels())
		answer.Digest = info.Digest.String()
		return answer, err
	}
	answer.Digest = w.Digest().String()
	return answer, nil
}

// expect takes what a message says of the whole. Where that has come meanwhile
// the ingest is of no use.
func (w *writing) expect(ctx context.Context, req *api.WriteContentRequest) error {
	if req.GetTotal() > 0 {
		w.total = req.GetTotal()
	}
	if req.GetExpected() == "" {
		return nil
	}
	w.expected = digest.Digest(req.GetExpected())
	here := lease.Resource{Kind: lease.Content, ID: w.expected.String()}
	defer w.Leases.Hold(w.namespace, here)()
	if _, err := w.Content.Info(ctx, w.namespace, w.expected); err != nil {
		return nil // it is not here: that is what the stream is for
	}
	var err error
	if w.lease != "" {
		err = w.addResource(ctx, w.namespace, w.lease, here)
	}
	err = errors.Join(err, w.Close())
	if abortErr := w.Content.Abort(ctx, w.namespace, w.lease, w.ref); !errors.Is(abortErr, errs.NotFound) {
		err = errors.Join(err, abortErr)
	}
	if err != nil {
		return err
	}
	return status.Errorf(codes.AlreadyExists, "blob with expected digest %s exists", w.expected)
}
