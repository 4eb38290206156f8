// Package streaming answers containerd's streaming service: a client opens a
// stream under a name of its own, and another call of it says what the stream
// is for. Streams belong to a namespace, and live as long as the call that
// opened them.
package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	api "github.com/containerd/containerd/api/services/streaming/v1"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/face/containerd/wire"
)

// Service is the streaming service. It is also containerd's StreamGetter.
type Service struct {
	api.UnimplementedStreamingServer

	mu      sync.Mutex
	streams map[name]*stream
}

type name struct{ namespace, id string }

// New makes the service.
func New() *Service { return &Service{streams: map[name]*stream{}} }

// Register makes the service one of server's.
func (s *Service) Register(server grpc.ServiceRegistrar) { api.RegisterStreamingServer(server, s) }

// Stream keeps a stream until its user or the client ends it.
func (s *Service) Stream(server api.Streaming_StreamServer) error {
	namespace, err := wire.Namespace(server.Context())
	if err != nil {
		return wire.Error(err)
	}
	first, err := server.Recv()
	if err != nil {
		return err
	}
	var init api.StreamInit
	if err := typeurl.UnmarshalTo(first, &init); err != nil {
		return wire.Error(errs.New(errs.Invalid, "a stream begins with its name: %w", err))
	}
	mine := &stream{server: server, closed: make(chan struct{})}
	key := name{namespace, init.ID}
	if err := s.add(key, mine); err != nil {
		return wire.Error(err)
	}
	defer s.remove(key)
	ready, err := wire.Pack(&emptypb.Empty{})
	if err != nil {
		return err
	}
	if err := server.Send(ready); err != nil {
		return err
	}
	select {
	case <-server.Context().Done():
	case <-mine.closed:
	}
	return nil
}

func (s *Service) add(n name, mine *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.id == "" {
		return errs.New(errs.Invalid, "a stream needs a name")
	}
	if s.streams[n] != nil {
		return errs.New(errs.Exists, "stream %.80q exists", n.id)
	}
	s.streams[n] = mine
	return nil
}

func (s *Service) remove(n name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, n)
}

// Get finds a stream of the context's namespace.
func (s *Service) Get(ctx context.Context, id string) (streaming.Stream, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.streams[name{namespace, id}]
	if found == nil {
		return nil, errs.New(errs.NotFound, "no stream %.80q is open", id)
	}
	return found, nil
}

// stream is one stream, as its user sees it.
type stream struct {
	server api.Streaming_StreamServer
	send   sync.Mutex
	end    sync.Once
	closed chan struct{}
}

func (s *stream) Send(message typeurl.Any) error {
	s.send.Lock()
	defer s.send.Unlock()
	select {
	case <-s.closed: // the call that carried it may be over
		return io.EOF
	default:
	}
	return native(s.server.Send(&anypb.Any{TypeUrl: message.GetTypeUrl(), Value: message.GetValue()}))
}

func (s *stream) Recv() (typeurl.Any, error) {
	message, err := s.server.Recv()
	if err != nil {
		return nil, native(err)
	}
	return message, nil
}

// Close ends the stream for both sides, once what is being sent is out.
func (s *stream) Close() error {
	s.send.Lock()
	defer s.send.Unlock()
	s.end.Do(func() { close(s.closed) })
	return nil
}

// native gives an error back as the library of the other services knows it;
// the end of a stream stays what it is.
func native(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return fmt.Errorf("stream: %w", errgrpc.ToNative(err))
}
