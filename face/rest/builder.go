package rest

import (
	"context"

	"berth/spec"
)

func (r *routes) builder() {
	builder := r.server.Builder
	answer(r, "GET /builder", "BuilderGet", "Describe the builder",
		func(ctx context.Context, _ *struct{}) (spec.Builder, error) { return builder.Get(ctx) })
	answer(r, "POST /builder/start", "BuilderStart", "Start the builder unless it runs, and tell where it is",
		func(ctx context.Context, _ *struct{}) (spec.Builder, error) { return builder.Start(ctx) })
	act(r, "POST /builder/stop", "BuilderStop", "Stop the builder; it is started again when it is needed",
		func(ctx context.Context, in *struct {
			Force bool `query:"force" doc:"break off builds that run"`
		},
		) error {
			return builder.Stop(ctx, in.Force)
		})
	answer(r, "GET /builder/cache", "BuildCache", "List what builds have left to make the next ones fast",
		func(ctx context.Context, in *struct {
			Filter []string `query:"filter,explode" doc:"as BuildKit has them, such as type==exec.cachemount"`
		},
		) (spec.BuildCache, error) {
			return builder.Cache(ctx, in.Filter)
		})
	answer(r, "POST /builder/prune", "BuildCachePrune", "Remove what builds have left",
		func(ctx context.Context, in *struct{ Body spec.BuildCachePrune }) (spec.BuildCache, error) {
			return builder.Prune(ctx, in.Body)
		})
}
