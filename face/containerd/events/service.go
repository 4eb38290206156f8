package events

import (
	"context"

	api "github.com/containerd/containerd/api/services/events/v1"
	ttrpcapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/face/containerd/wire"
)

// Service is containerd.services.events.v1.
type Service struct {
	api.UnimplementedEventsServer
	exchange *Exchange
}

// NewService makes the service of an exchange.
func NewService(x *Exchange) *Service { return &Service{exchange: x} }

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { api.RegisterEventsServer(r, s) }

// RegisterTTRPC adds the one method that runtimes call to a ttrpc server. Only
// those of their events are handed on that the node does not tell by itself:
// told sees each, and says whether it is one of those.
func (s *Service) RegisterTTRPC(server *ttrpc.Server, told func(*types.Envelope) bool) {
	ttrpcapi.RegisterTTRPCEventsService(server, runtimes{s.exchange, told})
}

// Publish tells an event of the client's.
func (s *Service) Publish(ctx context.Context, r *api.PublishRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	e := &types.Envelope{Timestamp: timestamppb.Now(), Namespace: namespace, Topic: r.GetTopic(), Event: r.GetEvent()}
	if err := s.exchange.Forward(e); err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// Forward hands on an event that happened elsewhere.
func (s *Service) Forward(_ context.Context, r *api.ForwardRequest) (*emptypb.Empty, error) {
	if err := s.exchange.Forward(r.GetEnvelope()); err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// Subscribe streams events until the client goes.
func (s *Service) Subscribe(r *api.SubscribeRequest, stream api.Events_SubscribeServer) error {
	events, err := s.exchange.Subscribe(stream.Context(), r.GetFilters()...)
	if err != nil {
		return wire.Error(err)
	}
	for e, err := range events {
		if err == nil {
			err = stream.Send(e)
		}
		if err != nil {
			return wire.Error(err)
		}
	}
	return wire.Error(context.Cause(stream.Context())) // of the client's going, or of the server's stopping
}

// runtimes is the service as runtimes see it.
type runtimes struct {
	exchange *Exchange
	told     func(*types.Envelope) bool
}

// Forward hands on what happened in a runtime.
func (s runtimes) Forward(_ context.Context, r *ttrpcapi.ForwardRequest) (*emptypb.Empty, error) {
	e := r.GetEnvelope()
	if err := check(e); err != nil {
		return nil, wire.Error(err)
	}
	if !s.told(e) {
		if err := s.exchange.Forward(e); err != nil {
			return nil, wire.Error(err)
		}
	}
	return &emptypb.Empty{}, nil
}
