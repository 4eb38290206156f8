package wire

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"berth/base/errs"
	"berth/spec"
)

// Every kind of error has a code, and each a different one.
func TestEveryKindHasACode(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../../base/errs/errs.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[codes.Code]errs.Kind{codes.OK: "none"}
	ast.Inspect(file, func(n ast.Node) bool {
		value, ok := n.(*ast.ValueSpec)
		if !ok || len(value.Values) != 1 {
			return true
		}
		literal, ok := value.Values[0].(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return true
		}
		text, _ := strconv.Unquote(literal.Value)
		kind := errs.Kind(text)
		code := status.Code(Error(errs.New(kind, "x")))
		if other, taken := kinds[code]; taken {
			t.Errorf("kinds %q and %q have the code %s", kind, other, code)
		}
		kinds[code] = kind
		return true
	})
	if len(kinds) != 13 {
		t.Errorf("found the kinds %v, want 12 and none", kinds)
	}
}

// What a client of containerd makes of our errors.
func TestErrorsAsClientsSeeThem(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want error
	}{
		{errs.New(errs.NotFound, "process already finished"), errdefs.ErrNotFound},
		{fmt.Errorf("delete: %w", errs.New(errs.Conflict, "it runs")), errdefs.ErrFailedPrecondition},
		{fmt.Errorf("filter: %w", errdefs.ErrInvalidArgument), errdefs.ErrInvalidArgument},
		{fmt.Errorf("read: %w", errdefs.ErrOutOfRange), errdefs.ErrOutOfRange},
		{fmt.Errorf("x: %w", status.Error(codes.Aborted, "y")), errdefs.ErrAborted},
		{status.Error(codes.OutOfRange, "y"), errdefs.ErrOutOfRange},
		{context.Canceled, context.Canceled},
		{errs.New(errs.Timeout, "t"), context.DeadlineExceeded},
		{errors.New("disk on fire"), errdefs.ErrInternal},
	} {
		got := errgrpc.ToNative(Error(tt.err))
		if !errors.Is(got, tt.want) {
			t.Errorf("%v is %v to a client, want %v", tt.err, got, tt.want)
		}
		if s, _ := status.FromError(Error(tt.err)); s.Message() == "" {
			t.Errorf("%v has no text", tt.err)
		}
	}
	if Error(nil) != nil {
		t.Error("no error became one")
	}
}

func TestNamespace(t *testing.T) {
	for name, want := range map[string]errs.Kind{
		"default": "", "k8s.io": "", "a-b_c.1": "",
		"": errs.Conflict, "../etc": errs.Invalid, "a+b": errs.Invalid, "-": errs.Invalid, strings.Repeat("x", 77): errs.Invalid,
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(namespaces.GRPCHeader, name))
		got, err := Namespace(ctx)
		if errs.KindOf(err) != want || err == nil && got != name {
			t.Errorf("namespace %q: %q, %v; want kind %q", name, got, err, want)
		}
	}
	if _, err := Namespace(t.Context()); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "namespace is required") {
		t.Errorf("no header: %v", err)
	}
}

func TestLease(t *testing.T) {
	if got := Lease(t.Context()); got != "" {
		t.Errorf("without a header: %q", got)
	}
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("containerd-lease", "l1"))
	if got := Lease(ctx); got != "l1" {
		t.Errorf("got %q", got)
	}
}

func TestAny(t *testing.T) {
	if Any(nil) != nil || FromAny(nil) != nil {
		t.Error("nothing became something")
	}
	kept := &spec.Opaque{Type: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte("{}")}
	if got := FromAny(Any(kept)); got.Type != kept.Type || string(got.Value) != "{}" {
		t.Errorf("got %+v", got)
	}
	packed, err := Pack(&events.TaskOOM{ContainerID: "c"})
	if err != nil || packed.GetTypeUrl() != "containerd.events.TaskOOM" {
		t.Errorf("%v, %v", packed, err)
	}
	again, err := Pack(packed)
	if err != nil || again != packed {
		t.Error("what is packed was packed again")
	}
}
