package rest

import (
	"context"

	"berth/spec"
)

// Membership is, embedded in an input, a container on a network.
type Membership struct {
	Named
	Container string `path:"container" doc:"name, id, or the beginning of an id"`
}

func (r *routes) networks() {
	set, containers := r.server.Networks, r.server.Containers
	create(r, "POST /networks", "NetworkCreate", "Make a network",
		func(ctx context.Context, in *struct{ Body spec.NetworkConfig }) (spec.Network, error) {
			return set.Create(ctx, in.Body)
		})
	answer(r, "GET /networks", "NetworkList", "List networks",
		func(_ context.Context, in *Chosen) ([]spec.Network, error) {
			filter, err := in.filter()
			if err != nil {
				return nil, err
			}
			return some(set.List(filter))
		})
	answer(r, "GET /networks/{ref}", "NetworkGet", "Describe a network",
		func(_ context.Context, in *Named) (spec.Network, error) { return set.Get(in.Ref) })
	act(r, "DELETE /networks/{ref}", "NetworkRemove", "Remove a network that no container is on",
		func(ctx context.Context, in *Named) error { return set.Remove(ctx, in.Ref) })
	answer(r, "POST /networks/prune", "NetworkPrune", "Remove the networks that no container is on",
		func(ctx context.Context, in *Chosen) (spec.Pruned, error) {
			filter, err := in.filter()
			if err != nil {
				return spec.Pruned{}, err
			}
			return pruned(set.Prune(ctx, filter))
		})
	act(r, "PUT /networks/{ref}/containers/{container}", "NetworkConnect", "Join a container to a network",
		func(ctx context.Context, in *struct {
			Membership
			Body spec.EndpointConfig
		},
		) error {
			in.Body.Network = in.Ref
			return containers.Connect(ctx, in.Container, in.Ref, in.Body)
		})
	act(r, "DELETE /networks/{ref}/containers/{container}", "NetworkDisconnect", "Take a container off a network",
		func(ctx context.Context, in *Membership) error {
			return containers.Disconnect(ctx, in.Container, in.Ref)
		})
}

func (r *routes) volumes() {
	set := r.server.Volumes
	create(r, "POST /volumes", "VolumeCreate", "Make a volume",
		func(ctx context.Context, in *struct{ Body spec.VolumeConfig }) (spec.Volume, error) {
			return set.Create(ctx, in.Body)
		})
	answer(r, "GET /volumes", "VolumeList", "List volumes",
		func(ctx context.Context, in *Chosen) ([]spec.Volume, error) {
			filter, err := in.filter()
			if err != nil {
				return nil, err
			}
			return some(set.List(ctx, filter))
		})
	answer(r, "GET /volumes/{ref}", "VolumeGet", "Describe a volume",
		func(ctx context.Context, in *Named) (spec.Volume, error) { return set.Get(ctx, in.Ref) })
	act(r, "DELETE /volumes/{ref}", "VolumeRemove", "Remove a volume that no container uses",
		func(ctx context.Context, in *struct {
			Named
			Force bool `query:"force" doc:"no error where there is none"`
		},
		) error {
			return set.Remove(ctx, in.Ref, in.Force)
		})
	answer(r, "POST /volumes/prune", "VolumePrune", "Remove anonymous volumes that no container uses",
		func(ctx context.Context, in *struct {
			Chosen
			All bool `query:"all" doc:"those with a name too"`
		},
		) (spec.Pruned, error) {
			filter, err := in.filter()
			if err != nil {
				return spec.Pruned{}, err
			}
			return pruned(set.Prune(ctx, in.All, filter))
		})
}
