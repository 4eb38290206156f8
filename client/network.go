package client

import (
	"context"
	"net/http"

	"berth/spec"
)

// NetworkCreate makes a network.
func (c *Client) NetworkCreate(ctx context.Context, config spec.NetworkConfig) (spec.Network, error) {
	return post[spec.Network](ctx, c, "/networks", nil, config)
}

// NetworkList returns the node's networks.
func (c *Client) NetworkList(ctx context.Context, filter spec.Filter) ([]spec.Network, error) {
	return get[[]spec.Network](ctx, c, "/networks", query{}.filter(filter).values())
}

// NetworkGet returns one network by name or id.
func (c *Client) NetworkGet(ctx context.Context, ref string) (spec.Network, error) {
	return get[spec.Network](ctx, c, at("networks", ref), nil)
}

// NetworkRemove takes a network away that no container is on.
func (c *Client) NetworkRemove(ctx context.Context, ref string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: at("networks", ref)}, nil)
}

// NetworkPrune removes the networks that no container is on.
func (c *Client) NetworkPrune(ctx context.Context, filter spec.Filter) (spec.Pruned, error) {
	return post[spec.Pruned](ctx, c, "/networks/prune", query{}.filter(filter).values(), nil)
}

// NetworkConnect joins a container to a network.
func (c *Client) NetworkConnect(ctx context.Context, network, container string, config spec.EndpointConfig) error {
	config.Network = network
	return c.call(ctx, request{method: http.MethodPut, path: at("networks", network, "containers", container), body: config}, nil)
}

// NetworkDisconnect takes a container off a network.
func (c *Client) NetworkDisconnect(ctx context.Context, network, container string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: at("networks", network, "containers", container)}, nil)
}
