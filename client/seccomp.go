package client

import (
	"context"

	"berth/spec"
)

// SeccompList returns the recorded seccomp profiles, without what runtimes take.
func (c *Client) SeccompList(ctx context.Context) ([]spec.SeccompProfile, error) {
	return get[[]spec.SeccompProfile](ctx, c, "/seccomp", nil)
}

// SeccompGet returns one by its name, or by the container that it was recorded
// of, as namespace/pod/container.
func (c *Client) SeccompGet(ctx context.Context, ref string) (spec.SeccompProfile, error) {
	return get[spec.SeccompProfile](ctx, c, at("seccomp", ref), nil)
}
