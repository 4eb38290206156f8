// Package containerd answers containerd's protocol: the server that carries its
// services, and those of them that are about the node as a whole (namespaces,
// introspection, version, health). The others are in the folders below, one
// for what belongs together.
//
// Services translate and decide nothing. A request's namespace comes to be
// before what makes something in it is done, so that no service has to see to
// that. What panics is logged and answered as an internal error. Methods that
// wait for something to happen end soon when the server does; what else is
// under way then gets some seconds to finish.
package containerd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path"
	"runtime/debug"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	health_v1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"berth/base/errs"
	"berth/face/containerd/wire"
)

// grace is how long a request may take to finish once the server is to end.
const grace = 5 * time.Second

// farewell is how long methods that wait go on once the server is to end. By
// then their clients have heard that the connection ends: they do not ask again
// on it, but the next node.
const farewell = 50 * time.Millisecond

// Service is a service that can be added to a server.
type Service interface {
	Register(r grpc.ServiceRegistrar)
}

// Server carries services on connections that others accept.
type Server struct {
	// Namespaces makes namespaces on their first use; nil where there are none.
	Namespaces interface {
		Ensure(ctx context.Context, name string) error
	}
	Tracer trace.Tracer // nil for no spans
	// Ended is told of each call how it went, by the call's whole name; nil where
	// nobody wants to know. What waits for something to happen is left out.
	Ended func(method string, took time.Duration, err error)
	Log   *slog.Logger
}

// Serve answers calls of the services on what listener accepts, until ctx is
// done.
func (s *Server) Serve(ctx context.Context, listener net.Listener, services ...Service) error {
	waiting, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(wire.MaxMessage), grpc.MaxSendMsgSize(wire.MaxMessage),
		grpc.ChainUnaryInterceptor(s.unary(waiting)), grpc.ChainStreamInterceptor(s.stream(waiting)),
		grpc.ConnectionTimeout(30 * time.Second),
	}
	server := grpc.NewServer(options...)
	for _, service := range services {
		service.Register(server)
	}
	health_v1.RegisterHealthServer(server, health.NewServer())
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		patience := time.AfterFunc(grace, server.Stop)
		defer patience.Stop()
		defer time.AfterFunc(farewell, end).Stop()
		server.GracefulStop()
	})()
	err := server.Serve(listener)
	if ctx.Err() != nil {
		<-stopped
		return ctx.Err()
	}
	return err
}

// waits are the methods that end only when something happens, or the client
// goes.
var waits = map[string]bool{
	"/containerd.services.tasks.v1.Tasks/Wait":           true,
	"/containerd.services.sandbox.v1.Controller/Wait":    true,
	"/containerd.services.events.v1.Events/Subscribe":    true,
	"/containerd.services.streaming.v1.Streaming/Stream": true,
	"/containerd.services.transfer.v1.Transfer/Transfer": true,
	"/containerd.services.content.v1.Content/Write":      true,
	"/grpc.health.v1.Health/Watch":                       true,
	"/runtime.v1.RuntimeService/GetContainerEvents":      true,
}

// makes are the methods that put something into a namespace.
var makes = map[string]bool{
	"/containerd.services.containers.v1.Containers/Create": true,
	"/containerd.services.images.v1.Images/Create":         true,
	"/containerd.services.content.v1.Content/Write":        true,
	"/containerd.services.content.v1.Content/Update":       true,
	"/containerd.services.snapshots.v1.Snapshots/Prepare":  true,
	"/containerd.services.snapshots.v1.Snapshots/View":     true,
	"/containerd.services.snapshots.v1.Snapshots/Commit":   true,
	"/containerd.services.diff.v1.Diff/Diff":               true,
	"/containerd.services.leases.v1.Leases/Create":         true,
	"/containerd.services.leases.v1.Leases/AddResource":    true,
	"/containerd.services.transfer.v1.Transfer/Transfer":   true,
	"/containerd.services.mounts.v1.Mounts/Activate":       true,
	"/containerd.services.sandbox.v1.Store/Create":         true,
	"/containerd.services.sandbox.v1.Controller/Create":    true,
}

func (s *Server) unary(life context.Context) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
		ctx, done := s.begin(ctx, life, info.FullMethod)
		defer done(&err)
		if err := s.ensure(ctx, info.FullMethod); err != nil {
			return nil, err
		}
		return handle(ctx, request)
	}
}

func (s *Server) stream(life context.Context) grpc.StreamServerInterceptor {
	return func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
		ctx, done := s.begin(stream.Context(), life, info.FullMethod)
		defer done(&err)
		if err := s.ensure(ctx, info.FullMethod); err != nil {
			return err
		}
		return handle(service, within{stream, ctx})
	}
}

// within is a stream whose context is another.
type within struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // grpc asks streams for theirs
}

// Context implements grpc.ServerStream.
func (w within) Context() context.Context { return w.ctx }

// begin gives a call its context, and what to do with its error at its end:
// a panic is one too.
func (s *Server) begin(ctx, life context.Context, method string) (context.Context, func(*error)) {
	begun := time.Now()
	release := func() {}
	if waits[method] {
		inner, cancel := context.WithCancelCause(ctx)
		stop := context.AfterFunc(life, func() { cancel(errStopping) })
		ctx, release = inner, func() { stop(); cancel(nil) }
	}
	ctx, span := s.span(ctx, method)
	return ctx, func(err *error) {
		if v := recover(); v != nil {
			s.Log.ErrorContext(ctx, "a handler panicked", "method", method, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			*err = errs.New(errs.Internal, "panic: %v", v)
		}
		if *err != nil && context.Cause(ctx) == errStopping { //nolint:errorlint // it is that very one
			*err = errStopping
		}
		release()
		*err = wire.Error(*err)
		if *err != nil {
			span.SetStatus(codes.Error, (*err).Error())
		}
		span.End()
		if s.Ended != nil && !waits[method] {
			s.Ended(method, time.Since(begun), *err)
		}
		s.Log.DebugContext(ctx, "call", "method", path.Base(method), "took", time.Since(begun), "err", *err)
	}
}

// errStopping ends the methods that wait.
var errStopping = errs.New(errs.Unavailable, "the node is stopping")

// span makes a span of a call, a child of the caller's where that sends a
// traceparent.
func (s *Server) span(ctx context.Context, method string) (context.Context, trace.Span) {
	if s.Tracer == nil {
		return ctx, noop.Span{}
	}
	headers, _ := metadata.FromIncomingContext(ctx)
	ctx = propagation.TraceContext{}.Extract(ctx, carrier(headers))
	service, name := path.Split(method)
	return s.Tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", path.Base(service)), attribute.String("rpc.method", name),
	))
}

// carrier reads trace headers out of those of a call.
type carrier metadata.MD

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string { return slices.Collect(maps.Keys(c)) }

// ensure makes the namespace that a method is about to put something into. One
// that is missing or malformed is the service's to refuse.
func (s *Server) ensure(ctx context.Context, method string) error {
	if s.Namespaces == nil || !makes[method] {
		return nil
	}
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return err
	}
	return s.Namespaces.Ensure(ctx, namespace)
}
