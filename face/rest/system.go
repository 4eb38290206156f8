package rest

import (
	"context"
	"net/http"

	"berth/spec"
)

type pruning struct {
	Chosen
	All     bool `query:"all" doc:"all images that no container uses, not only those without a name"`
	Volumes bool `query:"volumes" doc:"anonymous volumes that no container uses, too"`
}

func (r *routes) system() {
	s := r.server
	answer(r, "GET /ping", "Ping", "Ask whether the node answers",
		func(context.Context, *struct{}) (Pong, error) { return Pong{}, nil })
	answer(r, "GET /version", "Version", "Say what answers",
		func(context.Context, *struct{}) (spec.Version, error) { return s.System.Version(), nil })
	answer(r, "GET /info", "Info", "Describe the node",
		func(ctx context.Context, _ *struct{}) (spec.Info, error) { return s.System.Info(ctx) })
	answer(r, "GET /df", "DiskUsage", "Tell what the node keeps on disk",
		func(ctx context.Context, _ *struct{}) (spec.DiskUsage, error) { return s.System.DiskUsage(ctx) })
	answer(r, "POST /prune", "SystemPrune", "Remove what nothing uses",
		func(ctx context.Context, in *pruning) (spec.SystemPruned, error) { return s.prune(ctx, in) })
	r.scrub()
	r.events()
}

// scrub answers with progress, and with the result at the end. The request's
// end cancels it.
func (r *routes) scrub() {
	s := r.server
	op := gives(r.operation("POST /system/scrub", "SystemScrub", "Read all that images are made of, hold it against its digests, and repair what is damaged"),
		ndjson, "One JSON value a line. The last has a result or an error.", schemaOf[spec.ScrubProgress](r.api))
	stream(r, op, func(w http.ResponseWriter, req *http.Request, in *struct{ Body spec.ScrubRequest }) {
		s.lines(w, req, ndjson, func(out *lineWriter) error {
			result, err := s.Images.Scrub(req.Context(), in.Body, func(p spec.ScrubProgress) {
				_ = out.value(p) // the context ends too when the client is gone
			})
			if err != nil {
				return out.value(spec.ScrubProgress{Error: &s.problem(req.Context(), err).Problem})
			}
			return out.value(spec.ScrubProgress{Checked: result.Checked, Bytes: result.Bytes, Total: result.Bytes, Result: &result})
		})
	})
}

// prune goes from what uses to what is used.
func (s *Server) prune(ctx context.Context, in *pruning) (spec.SystemPruned, error) {
	var out spec.SystemPruned
	filter, err := in.filter()
	if err != nil {
		return out, err
	}
	if out.Containers, err = pruned(s.Containers.Prune(ctx, filter)); err != nil {
		return out, err
	}
	if out.Networks, err = pruned(s.Networks.Prune(ctx, filter)); err != nil {
		return out, err
	}
	out.Volumes.Removed = []string{}
	if in.Volumes {
		if out.Volumes, err = pruned(s.Volumes.Prune(ctx, false, filter)); err != nil {
			return out, err
		}
	}
	if out.BuildCache, err = s.pruneBuilds(ctx, in); err != nil {
		return out, err
	}
	out.Images, err = pruned(s.Images.Prune(ctx, in.All, filter))
	return out, err
}

// pruneBuilds removes what builds have left, where there is anything. BuildKit
// knows no labels of it.
func (s *Server) pruneBuilds(ctx context.Context, in *pruning) (spec.Pruned, error) {
	out := spec.Pruned{Removed: []string{}}
	share, err := s.Builder.Share(ctx)
	if err != nil || share.Total == 0 || len(in.Filter) > 0 {
		return out, err
	}
	gone, err := s.Builder.Prune(ctx, spec.BuildCachePrune{All: in.All})
	for _, e := range gone.Entries {
		out.Removed = append(out.Removed, e.ID)
	}
	out.Reclaimed = gone.Size
	return out, err
}

// Pong says that the node answers, and no more.
type Pong struct{}
