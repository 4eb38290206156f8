package daemon

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"go.opentelemetry.io/otel"

	"berth/base/span"
)

// Whoever should collect traces takes connections, and says nothing.
func TestNobodyWaitsForACollector(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	before, propagator := otel.GetTracerProvider(), otel.GetTextMapPropagator()
	t.Cleanup(func() { otel.SetTracerProvider(before); otel.SetTextMapPropagator(propagator) })
	stop, err := startTraces(t.Context(), "http://"+listener.Addr().String(), 1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for range 20_000 { // many times what is kept for it
		_, end := span.Start(t.Context(), "step")
		end(nil)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("spans took %v", took)
	}
	begun = time.Now()
	stop(t.Context())
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("the end took %v", took)
	}
}
