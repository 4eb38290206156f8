package rest

import (
	"context"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"berth/spec"
)

func (r *routes) images() {
	set := r.server.Images
	answer(r, "GET /images", "ImageList", "List images",
		func(ctx context.Context, in *Chosen) ([]spec.Image, error) {
			filter, err := in.filter()
			if err != nil {
				return nil, err
			}
			return some(set.List(ctx, filter))
		})
	answer(r, "GET /images/{ref}", "ImageGet", "Describe an image",
		func(ctx context.Context, in *Named) (spec.Image, error) { return set.Get(ctx, in.Ref) })
	answer(r, "GET /images/{ref}/history", "ImageHistory", "List the steps of an image's making, newest first",
		func(ctx context.Context, in *Named) ([]spec.HistoryEntry, error) {
			return some(set.History(ctx, in.Ref))
		})
	act(r, "POST /images/{ref}/tag", "ImageTag", "Give an image a further name",
		func(ctx context.Context, in *struct {
			Named
			Name string `query:"name" required:"true"`
		},
		) error {
			return set.Tag(ctx, in.Ref, in.Name)
		})
	answer(r, "DELETE /images/{ref}", "ImageRemove", "Take a name off an image, and the image away with its last",
		func(ctx context.Context, in *struct {
			Named
			Force bool `query:"force"`
		},
		) ([]spec.RemovedImage, error) {
			return some(set.Remove(ctx, in.Ref, in.Force))
		})
	answer(r, "POST /images/prune", "ImagePrune", "Remove images that nobody needs",
		func(ctx context.Context, in *struct {
			Chosen
			All bool `query:"all" doc:"all that no container uses, not only those without a name"`
		},
		) (spec.Pruned, error) {
			filter, err := in.filter()
			if err != nil {
				return spec.Pruned{}, err
			}
			return pruned(set.Prune(ctx, in.All, filter))
		})
	r.moving()
}

// moving is the routes that carry image bits.
func (r *routes) moving() {
	s := r.server
	progress := func(route, id, summary string) huma.Operation {
		return gives(r.operation(route, id, summary), ndjson,
			"One JSON value a line. The last has phase done and either status complete or an error.",
			schemaOf[spec.Progress](r.api))
	}
	stream(r, progress("POST /images/pull", "ImagePull", "Fetch an image from its registry"),
		func(w http.ResponseWriter, req *http.Request, in *struct{ Body spec.PullRequest }) {
			s.progress(w, req, func(ctx context.Context, tell func(spec.Progress)) ([]spec.Image, error) {
				image, err := s.Images.Pull(ctx, in.Body, tell)
				return []spec.Image{image}, err
			})
		})
	stream(r, progress("POST /images/push", "ImagePush", "Send an image to its registry"),
		func(w http.ResponseWriter, req *http.Request, in *struct{ Body spec.PushRequest }) {
			s.progress(w, req, func(ctx context.Context, tell func(spec.Progress)) ([]spec.Image, error) {
				return nil, s.Images.Push(ctx, in.Body, tell)
			})
		})
	stream(r, takes(progress("POST /images/load", "ImageLoad", "Read images from an archive"),
		tarType, "an OCI layout or docker-archive, plain or compressed"),
		func(w http.ResponseWriter, req *http.Request, _ *struct{}) {
			s.progress(w, req, func(ctx context.Context, tell func(spec.Progress)) ([]spec.Image, error) {
				return s.Images.Load(ctx, req.Body, tell)
			})
		})
	stream(r, gives(r.operation("POST /images/save", "ImageSave", "Write images to an archive"), tarType, "the archive", binary()),
		func(w http.ResponseWriter, req *http.Request, in *struct {
			Refs   []string `query:"ref,explode" required:"true" minItems:"1"`
			Format string   `query:"format" enum:"docker-archive,oci-archive" default:"docker-archive"`
		},
		) {
			s.download(w, req, func(ctx context.Context, out io.Writer) error {
				return s.Images.Save(ctx, in.Refs, in.Format, out)
			})
		})
}
