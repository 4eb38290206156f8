package rest

import (
	"context"

	"berth/base/errs"
	"berth/spec"
)

func (r *routes) seccomp() {
	answer(r, "GET /seccomp", "SeccompList", "List recorded seccomp profiles",
		func(ctx context.Context, _ *struct{}) ([]spec.SeccompProfile, error) {
			all, err := r.server.Seccomp.Profiles(ctx)
			for i := range all {
				all[i].Profile = nil
			}
			return some(all, err)
		})
	answer(r, "GET /seccomp/{ref}", "SeccompGet", "Get a recorded seccomp profile",
		func(ctx context.Context, in *struct {
			Ref string `path:"ref" minLength:"1" maxLength:"1024" doc:"its name, or namespace/pod/container"`
		},
		) (spec.SeccompProfile, error) {
			return r.profile(ctx, in.Ref)
		})
}

// profile finds one by its name, or by the container that it was recorded of.
func (r *routes) profile(ctx context.Context, ref string) (spec.SeccompProfile, error) {
	all, err := r.server.Seccomp.Profiles(ctx)
	if err != nil {
		return spec.SeccompProfile{}, err
	}
	for _, p := range all {
		if p.Name == ref || len(p.From) == 1 && p.From[0] == ref {
			return p, nil
		}
	}
	return spec.SeccompProfile{}, errs.New(errs.NotFound, "no recorded seccomp profile %s", ref)
}
