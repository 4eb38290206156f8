// Package wire holds what all services of containerd's protocol have in common
// on the wire: the namespace and the lease of a request, the codes of errors,
// and messages that are kept as they came.
package wire

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/base/errs"
	"berth/spec"
)

// MaxMessage is the largest message that containerd takes and sends.
const MaxMessage = 16 << 20

// Publisher tells clients what happened, in the order of its calls. An event
// that cannot be told is logged: what happened has happened.
type Publisher interface {
	Publish(ctx context.Context, namespace, topic string, event proto.Message)
}

// Namespace is the request's namespace, which nearly all methods ask for. None
// is errs.Conflict and a malformed one errs.Invalid, as containerd has it.
func Namespace(ctx context.Context) (string, error) {
	namespace, ok := namespaces.Namespace(ctx)
	if !ok || namespace == "" {
		return "", errs.New(errs.Conflict, "namespace is required: %w", errdefs.ErrFailedPrecondition)
	}
	if err := identifiers.Validate(namespace); err != nil {
		return "", errs.New(errs.Invalid, "namespace validation: %w", err)
	}
	return namespace, nil
}

// Lease is the lease that what the request makes belongs to, "" for none.
func Lease(ctx context.Context) string {
	lease, _ := leases.FromContext(ctx)
	return lease
}

// Identifier checks an id that becomes part of paths and of topics.
func Identifier(id string) error {
	if err := identifiers.Validate(id); err != nil {
		return errs.New(errs.Invalid, "%w", err)
	}
	return nil
}

// Error makes err an answer with the code that containerd gives its kind. The
// client is root's, or root's other daemon, whose log is where an operator
// looks: it gets the text of every error, with the words at its end that
// containerd's have and some clients look for. What is a status already stays.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok { // the outermost is one
		return err
	}
	c, text := code(err), err.Error()
	if word := wordOf(c); !strings.Contains(text, word) {
		text += ": " + word
	}
	return status.Error(c, text)
}

// wordOf is what containerd's messages of the code end with, "" where nobody
// looks for it.
func wordOf(c codes.Code) string {
	switch c { //nolint:exhaustive // see above
	case codes.InvalidArgument:
		return errdefs.ErrInvalidArgument.Error()
	case codes.NotFound:
		return errdefs.ErrNotFound.Error()
	case codes.AlreadyExists:
		return errdefs.ErrAlreadyExists.Error()
	case codes.FailedPrecondition:
		return errdefs.ErrFailedPrecondition.Error()
	case codes.Unavailable:
		return errdefs.ErrUnavailable.Error()
	case codes.Unimplemented:
		return errdefs.ErrNotImplemented.Error()
	}
	return ""
}

func code(err error) codes.Code {
	if kind := errs.KindOf(err); kind != errs.Internal {
		return codeOf(kind)
	}
	if inner := status.Code(err); inner != codes.Unknown {
		return inner
	}
	switch {
	case errdefs.IsInvalidArgument(err):
		return codes.InvalidArgument
	case errdefs.IsNotFound(err):
		return codes.NotFound
	case errdefs.IsAlreadyExists(err):
		return codes.AlreadyExists
	case errdefs.IsFailedPrecondition(err), errdefs.IsConflict(err), errdefs.IsNotModified(err):
		return codes.FailedPrecondition
	case errdefs.IsNotImplemented(err):
		return codes.Unimplemented
	case errdefs.IsUnavailable(err):
		return codes.Unavailable
	case errdefs.IsOutOfRange(err):
		return codes.OutOfRange
	case errdefs.IsAborted(err):
		return codes.Aborted
	case errdefs.IsResourceExhausted(err):
		return codes.ResourceExhausted
	case errdefs.IsPermissionDenied(err):
		return codes.PermissionDenied
	case errdefs.IsUnauthorized(err):
		return codes.Unauthenticated
	}
	return codes.Internal
}

// codeOf is the code of each kind of error.
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

// Any is a kept message as it came; nil stays nil.
func Any(o *spec.Opaque) *anypb.Any {
	if o == nil {
		return nil
	}
	return &anypb.Any{TypeUrl: o.Type, Value: o.Value}
}

// FromAny keeps a message as it is; none, or an empty one, is nil.
func FromAny(a *anypb.Any) *spec.Opaque {
	if a.GetTypeUrl() == "" && len(a.GetValue()) == 0 {
		return nil
	}
	return &spec.Opaque{Type: a.GetTypeUrl(), Value: a.GetValue()}
}

// Pack puts a message of ours into an Any under its plain name, where
// containerd's clients look for it.
func Pack(m proto.Message) (*anypb.Any, error) {
	if packed, ok := m.(*anypb.Any); ok {
		return packed, nil
	}
	value, err := proto.Marshal(m)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}, nil
}
