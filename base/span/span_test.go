package span_test

import (
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"berth/base/errs"
	"berth/base/span"
)

func TestStepsNestAndTellHowTheyWent(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(trace.NewTracerProvider(trace.WithSpanProcessor(recorder)))
	t.Cleanup(func() { otel.SetTracerProvider(before) })

	ctx, endOuter := span.Start(t.Context(), "pull", "image", "alpine")
	_, endInner := span.Start(ctx, "fetch")
	endInner(errs.New(errs.Timeout, "no byte for 30 s"))
	endOuter(nil)

	ended := recorder.Ended()
	if len(ended) != 2 || ended[0].Name() != "fetch" || ended[1].Name() != "pull" {
		t.Fatalf("ended %v", ended)
	}
	if ended[0].Parent().SpanID() != ended[1].SpanContext().SpanID() {
		t.Error("fetch is not a step of pull")
	}
	if got := ended[0].Status(); got.Code != codes.Error || got.Description != "timeout" {
		t.Errorf("status of fetch: %+v", got)
	}
	if attrs := ended[1].Attributes(); len(attrs) != 1 || attrs[0].Value.AsString() != "alpine" {
		t.Errorf("attributes of pull: %v", attrs)
	}
}
