package content

import (
	"errors"
	"io"

	api "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/face/containerd/wire"
)

// piece is how much of a blob one message carries.
const piece = 1 << 20

// Read implements ContentServer: size bytes from offset, or what there is.
func (s *contents) Read(req *api.ReadContentRequest, stream api.Content_ReadServer) error {
	return wire.Error(s.read(req, stream))
}

func (s *contents) read(req *api.ReadContentRequest, stream api.Content_ReadServer) (err error) {
	ctx := stream.Context()
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return err
	}
	d, err := digestOf(req.GetDigest())
	if err != nil {
		return err
	}
	f, err := s.Content.Open(ctx, namespace, d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	offset := max(req.GetOffset(), 0)
	if offset > st.Size() {
		return status.Errorf(codes.OutOfRange, "read past object length %d bytes", st.Size())
	}
	left := st.Size() - offset
	if n := req.GetSize(); n > 0 && n < left {
		left = n
	}
	buf := make([]byte, min(piece, left))
	var sent int64
	for left > 0 {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), left)], offset)
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if err := stream.Send(&api.ReadContentResponse{Offset: sent, Data: buf[:n]}); err != nil {
			return err
		}
		offset, sent, left = offset+int64(n), sent+int64(n), left-int64(n)
	}
	return nil
}
