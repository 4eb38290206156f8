// Package cri answers the Kubernetes Container Runtime Interface: its
// RuntimeService here, its ImageService in images, streams in streaming, and
// statistics in metrics.
//
// The server translates and decides nothing: pods and their containers are
// node/pod's. All RPCs are idempotent as the CRI asks, lists and statuses come
// from memory, and an error has the code of its kind (see wire). The Stream
// lists give each item once, in parts that any client can take.
//
// GetContainerEvents tells of each change of a pod's containers, and of the pod
// itself, as it happens: see feed.
package cri

import (
	"log/slog"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/face/cri/wire"
)

// Config says what a Server answers from.
type Config struct {
	Pods       Pods
	Containers Containers
	Images     Images
	Streams    Streams
	Meter      Meter
	Network    Network
	Node       Node
	Log        *slog.Logger
}

// Server is the RuntimeService.
type Server struct {
	cri.UnimplementedRuntimeServiceServer
	Config
	feed feed
}

// New makes a server. Tell it what happens on the node (Tell), and Run it.
func New(c Config) *Server {
	s := &Server{Config: c}
	s.feed.init()
	return s
}

// Register adds the service to a server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	wire.Register(r, &cri.RuntimeService_ServiceDesc, s)
}
