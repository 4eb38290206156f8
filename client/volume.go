package client

import (
	"context"
	"net/http"

	"berth/spec"
)

// VolumeCreate makes a volume, or returns the one that has the name already.
func (c *Client) VolumeCreate(ctx context.Context, config spec.VolumeConfig) (spec.Volume, error) {
	return post[spec.Volume](ctx, c, "/volumes", nil, config)
}

// VolumeList returns the node's volumes.
func (c *Client) VolumeList(ctx context.Context, filter spec.Filter) ([]spec.Volume, error) {
	return get[[]spec.Volume](ctx, c, "/volumes", query{}.filter(filter).values())
}

// VolumeGet returns one volume.
func (c *Client) VolumeGet(ctx context.Context, name string) (spec.Volume, error) {
	return get[spec.Volume](ctx, c, at("volumes", name), nil)
}

// VolumeRemove takes a volume away that no container uses.
func (c *Client) VolumeRemove(ctx context.Context, name string, force bool) error {
	return c.call(ctx, request{method: http.MethodDelete, path: at("volumes", name), query: query{}.flag("force", force).values()}, nil)
}

// VolumePrune removes anonymous volumes that no container uses, or all such.
func (c *Client) VolumePrune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error) {
	return post[spec.Pruned](ctx, c, "/volumes/prune", query{}.flag("all", all).filter(filter).values(), nil)
}
