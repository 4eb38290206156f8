// Package wire holds what all of the CRI has in common on the wire: the codes
// of errors, and lists in parts.
package wire

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/base/errs"
)

// Register adds a service to a server, so that its methods can return errors of
// ours: they leave with their codes. Interceptors of the server see these.
func Register(r grpc.ServiceRegistrar, desc *grpc.ServiceDesc, service any) {
	coded := *desc
	coded.Methods = nil
	for _, m := range desc.Methods {
		coded.Methods = append(coded.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: unary(m)})
	}
	coded.Streams = nil
	for _, s := range desc.Streams {
		handle := s.Handler
		s.Handler = func(service any, stream grpc.ServerStream) error { return Error(handle(service, stream)) }
		coded.Streams = append(coded.Streams, s)
	}
	r.RegisterService(&coded, service)
}

func unary(m grpc.MethodDesc) grpc.MethodHandler {
	return func(service any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		code := func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			coded := func(ctx context.Context, request any) (any, error) {
				answer, err := handle(ctx, request)
				if err != nil {
					return nil, Error(err)
				}
				return answer, nil
			}
			if intercept == nil {
				return coded(ctx, request)
			}
			return intercept(ctx, request, info, coded)
		}
		return m.Handler(service, ctx, decode, code)
	}
}

// Error gives an error the code of its kind. The client is root's, and its log
// is where an operator looks: it gets the text of every error. What is a
// status already keeps its code.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	return status.Error(code(err), err.Error())
}

func code(err error) codes.Code {
	if kind := errs.KindOf(err); kind != errs.Internal {
		return codeOf(kind)
	}
	var coded interface{ GRPCStatus() *status.Status }
	if errors.As(err, &coded) {
		return coded.GRPCStatus().Code()
	}
	return codes.Internal
}

// codeOf is the code of each kind of error. Kubelet asks whether a code is
// NotFound, Unimplemented, ResourceExhausted or DeadlineExceeded.
func codeOf(k errs.Kind) codes.Code {
	switch k {
	case errs.Invalid:
		return codes.InvalidArgument
	case errs.NotFound:
		return codes.NotFound
	case errs.Exists:
		return codes.AlreadyExists
	case errs.Conflict:
		return codes.FailedPrecondition
	case errs.Denied:
		return codes.PermissionDenied
	case errs.Anonymous:
		return codes.Unauthenticated
	case errs.Exhausted:
		return codes.ResourceExhausted
	case errs.Unavailable:
		return codes.Unavailable
	case errs.Unsupported:
		return codes.Unimplemented
	case errs.Canceled:
		return codes.Canceled
	case errs.Timeout:
		return codes.DeadlineExceeded
	case errs.Internal:
		return codes.Internal
	}
	return codes.OK // no kind of ours
}

// Part is how many bytes of items one part of a streamed list holds, about: far
// from what a client takes in one message, and enough that parts are few.
const Part = 1 << 20

// Stream sends a list in parts of at least one item, each item once. size is
// that of an item on the wire. An empty list is no part at all.
func Stream[T any](items []T, size func(T) int, send func([]T) error) error {
	first, bytes := 0, 0
	for i, item := range items {
		n := size(item)
		if i > first && bytes+n > Part {
			if err := send(items[first:i]); err != nil {
				return err
			}
			first, bytes = i, 0
		}
		bytes += n
	}
	if first == len(items) {
		return nil
	}
	return send(items[first:])
}
