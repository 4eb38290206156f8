package client

import (
	"context"
	"net/http"

	"berth/spec"
)

// PodList returns pods, newest first.
func (c *Client) PodList(ctx context.Context, filter spec.Filter) ([]spec.Pod, error) {
	return get[[]spec.Pod](ctx, c, "/pods", query{}.filter(filter).values())
}

// PodGet returns one pod by its id, the beginning of an id that only it has, its
// name, or namespace/name.
func (c *Client) PodGet(ctx context.Context, ref string) (spec.Pod, error) {
	return get[spec.Pod](ctx, c, at("pods", ref), nil)
}

// PodContainers returns the containers of a pod, or of all where ref is empty,
// newest first.
func (c *Client) PodContainers(ctx context.Context, ref string) ([]spec.PodContainer, error) {
	return get[[]spec.PodContainer](ctx, c, "/pods/containers", query{}.str("pod", ref).values())
}

// PodStats tells what ready pods use now; all where refs is empty.
func (c *Client) PodStats(ctx context.Context, refs []string) ([]spec.PodStats, error) {
	return get[[]spec.PodStats](ctx, c, "/pods/stats", query{}.list("pod", refs).values())
}

// PodTrace tells what was done for a pod since the node runs, in the order of
// the steps' beginnings.
func (c *Client) PodTrace(ctx context.Context, ref string) ([]spec.PodTraceStep, error) {
	return get[[]spec.PodTraceStep](ctx, c, at("pods", ref, "trace"), nil)
}

// PodStop stops a pod's containers and takes its network away.
func (c *Client) PodStop(ctx context.Context, ref string) error {
	return c.act(ctx, at("pods", ref, "stop"), nil, nil)
}

// PodRemove takes a pod away with its containers; one that is ready only by
// force.
func (c *Client) PodRemove(ctx context.Context, ref string, force bool) error {
	return c.call(ctx, request{method: http.MethodDelete, path: at("pods", ref), query: query{}.flag("force", force).values()}, nil)
}
