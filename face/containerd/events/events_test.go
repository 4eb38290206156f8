package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	ttrpcapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/events"
)

var quiet = slog.New(slog.DiscardHandler)

// Events arrive in order, and only those that a filter lets through.
func TestFilters(t *testing.T) {
	for _, tt := range []struct {
		filters []string
		want    string
	}{
		{nil, "a0 b0 a1 b1 "},
		{[]string{"namespace==a"}, "a0 a1 "},
		{[]string{`topic~="/create$"`}, "a0 b0 "},
		{[]string{`namespace==b,topic=="/tasks/exit"`}, "b1 "},
		{[]string{`namespace==b,topic=="/tasks/exit"`, "event.container_id==a0"}, "a0 b1 "},
		{[]string{"event.no==1"}, ""},
	} {
		ctx := t.Context()
		x := events.New(quiet)
		if tt.filters != nil {
			tt.filters = append(tt.filters, `topic=="/end"`)
		}
		stream, err := x.Subscribe(ctx, tt.filters...)
		if err != nil {
			t.Fatal(err)
		}
		for i, topic := range []string{"/tasks/create", "/tasks/exit"} {
			for _, ns := range []string{"a", "b"} {
				id := fmt.Sprint(ns, i)
				if i == 0 {
					x.Publish(ctx, ns, topic, &apievents.TaskCreate{ContainerID: id})
				} else {
					x.Publish(ctx, ns, topic, &apievents.TaskExit{ContainerID: id})
				}
			}
		}
		x.Publish(ctx, "end", "/end", &apievents.NamespaceDelete{Name: "end"})
		var got string
		for e, err := range stream {
			if err != nil {
				t.Fatal(err)
			}
			if e.GetTopic() == "/end" {
				break
			}
			m, err := typeurl.UnmarshalAny(e.GetEvent())
			if err != nil {
				t.Fatal(err)
			}
			if m, ok := m.(interface{ GetContainerID() string }); ok {
				got += m.GetContainerID() + " "
			}
		}
		if got != tt.want {
			t.Errorf("filters %q: got %q, want %q", tt.filters, got, tt.want)
		}
	}
	if _, err := events.New(quiet).Subscribe(t.Context(), "namespace=="); !errors.Is(err, errs.Invalid) {
		t.Errorf("half a filter: %v", err)
	}
}

// A slow subscriber is told; others see everything, and nobody waited.
func TestSlowSubscriber(t *testing.T) {
	x := events.New(quiet)
	slow, err := x.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calm, err := x.Subscribe(t.Context(), "event.container_id==last")
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		x.Publish(t.Context(), "ns", "/tasks/oom", &apievents.TaskOOM{ContainerID: "some"})
	}
	x.Publish(t.Context(), "ns", "/tasks/oom", &apievents.TaskOOM{ContainerID: "last"})
	seen := 0
	for _, err = range slow {
		if err != nil {
			break
		}
		seen++
	}
	if !errors.Is(err, errs.Exhausted) || seen != 4096 {
		t.Errorf("the slow one saw %d events and %v", seen, err)
	}
	for e, err := range calm {
		if err != nil || e.GetTopic() != "/tasks/oom" {
			t.Errorf("the other one got %v, %v", e, err)
		}
		break
	}
}

func TestMalformedEvents(t *testing.T) {
	x := events.New(quiet)
	now, event := timestamppb.Now(), &anypb.Any{TypeUrl: "x"}
	for _, e := range []*types.Envelope{
		nil,
		{Timestamp: now, Namespace: "", Topic: "/a", Event: event},
		{Timestamp: now, Namespace: "../n", Topic: "/a", Event: event},
		{Timestamp: now, Namespace: "n", Topic: "", Event: event},
		{Timestamp: now, Namespace: "n", Topic: "a", Event: event},
		{Timestamp: now, Namespace: "n", Topic: "/", Event: event},
		{Timestamp: now, Namespace: "n", Topic: "/a//b", Event: event},
		{Namespace: "n", Topic: "/a", Event: event},
	} {
		if err := x.Forward(e); !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", e, err)
		}
	}
	stream, err := x.Subscribe(t.Context(), "event.field==value")
	if err != nil {
		t.Fatal(err)
	}
	// What nobody can decode is handed on to those who do not look inside.
	all, err := x.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Forward(&types.Envelope{Timestamp: now, Namespace: "n", Topic: "/a", Event: &anypb.Any{TypeUrl: "no.such.Type", Value: []byte{0xff}}}); err != nil {
		t.Fatal(err)
	}
	for range all {
		break
	}
	_ = stream
}

// The client library and a runtime on real sockets.
func TestClients(t *testing.T) {
	dir := t.TempDir()
	x := events.New(quiet)
	service := events.NewService(x)
	server := grpc.NewServer()
	service.Register(server)
	listener, err := net.Listen("unix", filepath.Join(dir, "grpc.sock"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	tserver, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	service.RegisterTTRPC(tserver, func(e *types.Envelope) bool { return e.GetTopic() == "/tasks/exit" })
	tlistener, err := net.Listen("unix", filepath.Join(dir, "ttrpc.sock"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tserver.Serve(context.Background(), tlistener) }()
	defer tserver.Close()

	c, err := client.New(filepath.Join(dir, "grpc.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "ns"), time.Minute)
	defer cancel()
	got, failed := c.EventService().Subscribe(ctx, `topic~="^/"`)

	conn, err := net.Dial("unix", filepath.Join(dir, "ttrpc.sock"))
	if err != nil {
		t.Fatal(err)
	}
	runtime := ttrpcapi.NewTTRPCEventsClient(ttrpc.NewClient(conn))
	packed, err := anypb.New(&apievents.TaskOOM{ContainerID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	// The subscription takes effect some time after the call.
	for told := false; !told; {
		if err := c.EventService().Publish(ctx, "/own/topic", &apievents.TaskOOM{ContainerID: "own"}); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-got:
			told = true
			if e.Namespace != "ns" || e.Topic != "/own/topic" {
				t.Errorf("got %+v", e)
			}
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	_, err = runtime.Forward(ctx, &ttrpcapi.ForwardRequest{Envelope: &types.Envelope{Timestamp: timestamppb.Now(), Namespace: "other", Topic: "/tasks/exit", Event: packed}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = runtime.Forward(ctx, &ttrpcapi.ForwardRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("nothing forwarded: %v", err)
	}
	_, err = runtime.Forward(ctx, &ttrpcapi.ForwardRequest{Envelope: &types.Envelope{Timestamp: timestamppb.Now(), Namespace: "other", Topic: "/tasks/oom", Event: packed}})
	if err != nil {
		t.Fatal(err)
	}
	for e := range got {
		if e.Topic == "/tasks/exit" {
			t.Error("what the node tells by itself came from a runtime too")
		}
		if e.Topic == "/tasks/oom" {
			if m, err := typeurl.UnmarshalAny(e.Event); err != nil || m.(*apievents.TaskOOM).GetContainerID() != "c" {
				t.Errorf("got %v, %v", m, err)
			}
			break
		}
	}
	if err := c.EventService().Publish(t.Context(), "/x", &apievents.TaskOOM{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a namespace: %v", err)
	}
	if err := c.EventService().Publish(ctx, "x", &apievents.TaskOOM{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a bad topic: %v", err)
	}
}
