package daemon

import (
	"context"

	"berth/node/network"
	"berth/node/volume"
	"berth/spec"
)

// toldVolumes are volumes whose comings and goings are events.
type toldVolumes struct {
	*volume.Set
	events publisher
}

func (v toldVolumes) Create(ctx context.Context, config spec.VolumeConfig) (spec.Volume, error) {
	made, err := v.Set.Create(ctx, config)
	if err == nil {
		v.events.Publish("volume", "create", made.Name, map[string]string{"driver": made.Driver})
	}
	return made, err
}

func (v toldVolumes) Remove(ctx context.Context, name string, force bool) error {
	err := v.Set.Remove(ctx, name, force)
	if err == nil {
		v.events.Publish("volume", "destroy", name, nil)
	}
	return err
}

func (v toldVolumes) Prune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error) {
	pruned, err := v.Set.Prune(ctx, all, filter)
	for _, name := range pruned.Removed {
		v.events.Publish("volume", "destroy", name, nil)
	}
	return pruned, err
}

// toldNetworks are networks likewise.
type toldNetworks struct {
	*network.Set
	events publisher
}

func (n toldNetworks) publish(action, id, name, container string) {
	attributes := map[string]string{"name": name}
	if container != "" {
		attributes["container"] = container
	}
	n.events.Publish("network", action, id, attributes)
}

func (n toldNetworks) Create(ctx context.Context, config spec.NetworkConfig) (spec.Network, error) {
	made, err := n.Set.Create(ctx, config)
	if err == nil {
		n.publish("create", made.ID, made.Name, "")
	}
	return made, err
}

func (n toldNetworks) Remove(ctx context.Context, ref string) error {
	was, _ := n.Get(ref)
	err := n.Set.Remove(ctx, ref)
	if err == nil {
		n.publish("destroy", was.ID, was.Name, "")
	}
	return err
}

func (n toldNetworks) Prune(ctx context.Context, filter spec.Filter) (spec.Pruned, error) {
	pruned, err := n.Set.Prune(ctx, filter)
	for _, name := range pruned.Removed {
		n.publish("destroy", name, name, "")
	}
	return pruned, err
}

func (n toldNetworks) Attach(ctx context.Context, req network.AttachRequest) (network.Attachment, error) {
	made, err := n.Set.Attach(ctx, req)
	for _, e := range made.Endpoints {
		n.publish("connect", e.Network, e.Network, req.Container)
	}
	return made, err
}

func (n toldNetworks) Connect(ctx context.Context, req network.AttachRequest, config spec.EndpointConfig) (spec.Endpoint, error) {
	made, err := n.Set.Connect(ctx, req, config)
	if err == nil {
		n.publish("connect", made.Network, made.Network, req.Container)
	}
	return made, err
}

func (n toldNetworks) Disconnect(ctx context.Context, container, ref string) error {
	err := n.Set.Disconnect(ctx, container, ref)
	if err == nil {
		n.publish("disconnect", ref, ref, container)
	}
	return err
}
