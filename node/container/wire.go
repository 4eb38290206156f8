package container

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"berth/base/undo"
	"berth/node/network"
	"berth/spec"
)

// wiring is how a container is joined to networks.
type wiring struct {
	network.Attachment
	namespace string // as bundle.Input.NetNS
}

// own says whether a container has a network namespace that we make.
func ownNetwork(c *spec.Container) bool {
	mode := c.Config.Network.Mode
	return mode != network.Host && mode != network.None && !strings.HasPrefix(mode, sharedPrefix)
}

// wire joins the container to its networks.
func (s *Set) wire(ctx context.Context, c *spec.Container) (w wiring, err error) {
	if !ownNetwork(c) {
		if c.Config.Network.Mode == network.None {
			return wiring{}, nil // the runtime makes an empty namespace
		}
		ns, err := s.namespace(c.Config.Network.Mode, "net")
		return wiring{namespace: ns}, err
	}
	var u undo.Stack
	defer func() {
		if err != nil {
			u.Run(ctx, &err)
		}
	}()
	ns, err := s.Networks.NewNamespace(ctx, c.ID)
	if err != nil {
		return w, fmt.Errorf("make a network namespace: %w", err)
	}
	u.Add("remove the network namespace", func(ctx context.Context) error { return s.Networks.RemoveNamespace(ctx, c.ID) })
	attached, err := s.Networks.Attach(ctx, attachRequest(c, ns))
	if err != nil {
		return w, fmt.Errorf("join the network: %w", err)
	}
	return wiring{Attachment: attached, namespace: ns}, nil
}

// unwire takes the container off its networks. It may be called again. One
// with no network may have been on some before they were disconnected.
func (s *Set) unwire(ctx context.Context, c *spec.Container) error {
	if !ownNetwork(c) && c.Config.Network.Mode != network.None {
		return nil
	}
	return errors.Join(s.Networks.Detach(ctx, c.ID), s.Networks.RemoveNamespace(ctx, c.ID))
}

func attachRequest(c *spec.Container, namespace string) network.AttachRequest {
	return network.AttachRequest{
		Container: c.ID,
		Name:      c.Name,
		Hostname:  c.Config.Hostname,
		Namespace: namespace,
		Choice:    c.Config.Network,
		Exposed:   c.Exposed,
	}
}
