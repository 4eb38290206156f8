package rest_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"berth/base/errs"
	"berth/face/rest"
)

func TestEveryRequestIsASpan(t *testing.T) {
	n := newNode()
	n.end()
	spans := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
	s := &rest.Server{
		Containers: containers{n}, Images: images{n}, Networks: networks{n}, Volumes: volumes{n}, Events: bus{n}, System: system{n}, Builder: buildkit{n},
		Tracer: provider.Tracer("t"), Log: slog.New(slog.DiscardHandler),
	}
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()

	get := func(path string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	get("/v1/containers/web")
	n.fail = errs.New(errs.Internal, "x")
	get("/v1/info")
	n.fail = nil
	get("/v1/containers/web/logs?follow=true") // flushes through the span's writer

	conn, _, err := websocket.Dial(t.Context(), srv.URL+"/v1/containers/web/attach", nil) // hijacks through it
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = conn.Read(t.Context())
	}
	if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Error(err)
	}
	srv.Close()

	ended := spans.Ended()
	if len(ended) < 3 {
		t.Fatalf("%d spans", len(ended))
	}
	if got := ended[0]; got.Name() != "GET /v1/containers/{ref}" || got.Parent().TraceID().String() != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("span %q with parent %v", got.Name(), got.Parent())
	}
	if ended[1].Status().Code != codes.Error {
		t.Errorf("a failed request's span says %v", ended[1].Status())
	}
}
