package client

import (
	"context"
	"net/http"

	"berth/spec"
)

// BuilderGet describes the builder. NotFound: the node's machine has no
// BuildKit.
func (c *Client) BuilderGet(ctx context.Context) (spec.Builder, error) {
	return get[spec.Builder](ctx, c, "/builder", nil)
}

// BuilderStart makes sure that the builder runs, and tells where it is.
func (c *Client) BuilderStart(ctx context.Context) (spec.Builder, error) {
	return post[spec.Builder](ctx, c, "/builder/start", nil, nil)
}

// BuilderStop stops the builder, with force also one that builds.
func (c *Client) BuilderStop(ctx context.Context, force bool) error {
	return c.call(ctx, request{method: http.MethodPost, path: "/builder/stop", query: query{}.flag("force", force).values()}, nil)
}

// BuildCache lists what builds have left; filters are BuildKit's.
func (c *Client) BuildCache(ctx context.Context, filters []string) (spec.BuildCache, error) {
	return get[spec.BuildCache](ctx, c, "/builder/cache", query{}.list("filter", filters).values())
}

// BuildCachePrune removes what builds have left, and tells what that was.
func (c *Client) BuildCachePrune(ctx context.Context, req spec.BuildCachePrune) (spec.BuildCache, error) {
	return post[spec.BuildCache](ctx, c, "/builder/prune", nil, req)
}
