package container

import (
	"context"
	"fmt"
	"slices"

	"berth/base/errs"
	"berth/node/network"
	"berth/spec"
)

// Connect joins the container to a further network; one that does not run
// joins when it starts. errs.Conflict: it has no network of its own.
func (s *Set) Connect(ctx context.Context, ref, name string, config spec.EndpointConfig) error {
	config.Network = name
	return s.rewire(ctx, ref, "connect", func(ctx context.Context, c *container) error {
		return s.connect(ctx, c, config)
	})
}

// Disconnect takes the container off a network.
func (s *Set) Disconnect(ctx context.Context, ref, name string) error {
	return s.rewire(ctx, ref, "disconnect", func(ctx context.Context, c *container) error {
		return s.disconnect(ctx, c, name)
	})
}

func (s *Set) rewire(ctx context.Context, ref, what string, change func(context.Context, *container) error) error {
	c, err := s.lock(ctx, ref)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		view := c.get()
		if view.Namespace != "" {
			return errs.New(errs.Unsupported, "container %s was made by another client, which made its network", view.Name)
		}
		if !ownNetwork(view) && view.Config.Network.Mode != network.None {
			return errs.New(errs.Conflict, "container %s has network %s: it joins no others", view.Name, view.Config.Network.Mode)
		}
		if err := change(ctx, c); err != nil {
			return fmt.Errorf("%s container %s: %w", what, view.Name, err)
		}
		if view = c.get(); alive(view.State.Status) {
			if err := s.rewriteNames(view); err != nil {
				return fmt.Errorf("%s container %s: %w", what, view.Name, err)
			}
		}
		return s.db.write(ctx, c)
	})
}

func (s *Set) connect(ctx context.Context, c *container, config spec.EndpointConfig) error {
	view := c.get()
	choice := view.Config.Network
	if choice.Mode == config.Network || slices.ContainsFunc(choice.Endpoints, onThat(config.Network)) {
		return errs.New(errs.Exists, "it is on network %s already", config.Network)
	}
	choice.Endpoints = append(slices.Clone(choice.Endpoints), config)
	first := choice.Mode == network.None
	if first {
		choice.Mode = config.Network
	}
	var made []spec.Endpoint
	if alive(view.State.Status) {
		req := attachRequest(view, fmt.Sprintf("/proc/%d/ns/net", view.State.Pid))
		if first {
			req.Choice = choice
			attached, err := s.Networks.Attach(ctx, req)
			if err != nil {
				return err
			}
			made = attached.Endpoints
		} else {
			endpoint, err := s.Networks.Connect(ctx, req, config)
			if err != nil {
				return err
			}
			made = append(made, endpoint)
		}
	}
	c.change(func(c *spec.Container) {
		c.Config.Network, c.Networks = choice, slices.Concat(c.Networks, made)
	})
	return nil
}

func (s *Set) disconnect(ctx context.Context, c *container, name string) error {
	view := c.get()
	choice := view.Config.Network
	if !slices.ContainsFunc(choice.Endpoints, onThat(name)) && orElse(choice.Mode, network.Bridge) != name {
		return errs.New(errs.NotFound, "it is not on network %s", name)
	}
	if alive(view.State.Status) {
		if err := s.Networks.Disconnect(ctx, c.id, name); err != nil {
			return err
		}
	}
	choice.Endpoints = slices.DeleteFunc(slices.Clone(choice.Endpoints), onThat(name))
	if orElse(choice.Mode, network.Bridge) == name {
		choice.Mode = network.None // until another is connected, which becomes the first
		if len(choice.Endpoints) > 0 {
			choice.Mode = choice.Endpoints[0].Network
		}
	}
	c.change(func(c *spec.Container) {
		c.Config.Network = choice
		c.Networks = slices.DeleteFunc(slices.Clone(c.Networks), func(e spec.Endpoint) bool { return e.Network == name })
	})
	return nil
}

func onThat(name string) func(spec.EndpointConfig) bool {
	return func(e spec.EndpointConfig) bool { return e.Network == name }
}
