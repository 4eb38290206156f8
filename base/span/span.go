// Package span marks the steps of an operation for OpenTelemetry. Where
// nobody listens, a step costs next to nothing.
package span

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"

	"berth/base/errs"
)

// Start begins a step. The step ends with end, which is told how it went:
//
//	ctx, end := span.Start(ctx, "unpack layer", "digest", d)
//	defer func() { end(err) }()
//
// attributes are names and values in turn.
func Start(ctx context.Context, step string, attributes ...string) (_ context.Context, end func(error)) {
	ctx, passed := walk(ctx, step)
	ctx, s := otel.Tracer("berth").Start(ctx, step)
	if s.IsRecording() {
		for i := 0; i+1 < len(attributes); i += 2 {
			s.SetAttributes(attribute.String(attributes[i], attributes[i+1]))
		}
	}
	return ctx, func(err error) {
		passed(err)
		if err != nil {
			s.SetStatus(codes.Error, string(errs.KindOf(err)))
			s.RecordError(err)
		}
		s.End()
	}
}
