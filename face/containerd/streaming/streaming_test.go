package streaming_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/base/errs"
	"berth/face/containerd/streaming"
)

func open(t *testing.T) (*streaming.Service, core.StreamCreator) {
	t.Helper()
	service := streaming.New()
	server := grpc.NewServer()
	service.Register(server)
	listener := bufconn.Listen(1 << 16)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:streams", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	must(t, err)
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		serving.Wait()
	})
	return service, proxy.NewStreamCreator(conn)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A stream carries messages both ways, is known in its namespace only, and ends
// when either side ends it.
func TestStream(t *testing.T) {
	service, client := open(t)
	one, two := namespaces.WithNamespace(t.Context(), "one"), namespaces.WithNamespace(t.Context(), "two")
	theirs, err := client.Create(one, "s")
	must(t, err)
	if _, err := service.Get(two, "s"); !errors.Is(err, errs.NotFound) {
		t.Errorf("found in another namespace: %v", err)
	}
	mine, err := service.Get(one, "s")
	must(t, err)
	message := func(text string) *anypb.Any { return &anypb.Any{TypeUrl: "test", Value: []byte(text)} }
	must(t, theirs.Send(message("to the node")))
	if got, err := mine.Recv(); err != nil || string(got.GetValue()) != "to the node" {
		t.Errorf("%v, %v", got, err)
	}
	must(t, mine.Send(message("to the client")))
	if got, err := theirs.Recv(); err != nil || string(got.GetValue()) != "to the client" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := client.Create(one, "s"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second stream of one name: %v", err)
	}
	must(t, mine.Close())
	if _, err := theirs.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %v", err)
	}
	if err := mine.Send(message("late")); !errors.Is(err, io.EOF) {
		t.Errorf("sent behind the end: %v", err)
	}
	if _, err := client.Create(t.Context(), "s"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a namespace: %v", err)
	}
}

// A client that goes takes its stream with it.
func TestClientGoes(t *testing.T) {
	service, client := open(t)
	ctx, leave := context.WithCancel(namespaces.WithNamespace(t.Context(), "one"))
	_, err := client.Create(ctx, "s")
	must(t, err)
	mine, err := service.Get(ctx, "s")
	must(t, err)
	leave()
	if _, err := mine.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("behind a client that went: %v", err)
	}
	here := namespaces.WithNamespace(t.Context(), "one")
	for range 500 {
		if _, err := service.Get(here, "s"); errors.Is(err, errs.NotFound) {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Error("the stream stays")
}
