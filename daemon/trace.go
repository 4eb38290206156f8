package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// startTraces sends spans to the OTLP endpoint, if there is one. Rooms make
// spans by otel's own API, which costs next to nothing while nobody listens.
//
// Nobody waits for whoever is at the endpoint: spans that it does not take in
// time are lost. ratio is the share of traces that are begun here; where a
// caller has begun one, as kubelet may, it is for him to say.
func startTraces(ctx context.Context, endpoint string, ratio float64, log *slog.Logger) (stop func(context.Context), err error) {
	if endpoint == "" {
		return func(context.Context) {}, nil
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(tracesURL(endpoint)),
		otlptracehttp.WithTimeout(exporting), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: exporting, MaxElapsedTime: exporting,
		}))
	if err != nil {
		return nil, fmt.Errorf("traces to %s: %w", endpoint, err)
	}
	provider := trace.NewTracerProvider(
		trace.WithBatcher(exporter, trace.WithBatchTimeout(time.Second)),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(ratio))),
		trace.WithResource(resource.NewSchemaless(attribute.String("service.name", "berth"))),
	)
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.WarnContext(ctx, "traces are lost", "err", err)
	}))
	return func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSpans)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.WarnContext(ctx, "traces are lost", "err", err)
		}
	}, nil
}

const (
	exporting = 10 * time.Second // for what has piled up in a second
	lastSpans = time.Second      // so that a node that ends does not hold up the next
)

// tracesURL is where traces go at an endpoint, which is often named without
// the path that the protocol gives them.
func tracesURL(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil && (u.Path == "" || u.Path == "/") {
		return u.JoinPath("v1", "traces").String()
	}
	return endpoint
}
