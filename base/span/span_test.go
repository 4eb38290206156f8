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

func TestATrailRemembersStepsInOrder(t *testing.T) {
	var trail span.Trail
	ctx, endPod := span.Start(span.Follow(t.Context(), &trail), "run pod")
	inner, endNetwork := span.Start(ctx, "network")
	_, endPlugin := span.Start(inner, "plugin")
	endPlugin(errs.New(errs.Timeout, "it hangs"))
	endNetwork(nil)
	_, _ = span.Start(ctx, "pause")
	endPod(nil)
	span.Start(t.Context(), "elsewhere") //nolint:spancheck // it is only to be seen that nobody sees it

	steps := trail.Steps()
	if len(steps) != 4 {
		t.Fatalf("%d steps: %v", len(steps), steps)
	}
	for i, want := range []span.Step{{Name: "run pod"}, {Name: "network", Depth: 1}, {Name: "plugin", Depth: 2}, {Name: "pause", Depth: 1}} {
		if steps[i].Name != want.Name || steps[i].Depth != want.Depth {
			t.Errorf("step %d is %+v, want %+v", i, steps[i], want)
		}
	}
	if steps[2].Err == nil || steps[2].Duration == 0 || steps[3].Duration != 0 {
		t.Errorf("the ends: %+v", steps)
	}
	for range 1000 {
		span.Start(ctx, "more") //nolint:spancheck // as above
	}
	if n := len(trail.Steps()); n != 256 {
		t.Errorf("%d steps are remembered", n)
	}
}
