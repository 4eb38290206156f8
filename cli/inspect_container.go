package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// inspectedContainer is a container with the names that docker's users give
// to its parts in templates: .State.Running, .NetworkSettings.IPAddress.
// Its JSON is the container's own.
type inspectedContainer struct{ spec.Container }

func (p *program) inspectContainer(ctx context.Context, ref string, sizes bool) (any, error) {
	c, err := p.node().ContainerGet(ctx, ref)
	if err != nil {
		return nil, err
	}
	if c.Quiet { // in no list either; a pod's pause has the name of the pod
		return nil, errs.New(errs.NotFound, "no such container: %s", ref)
	}
	if sizes {
		s, err := p.node().ContainerSizes(ctx, c.ID)
		if err != nil {
			return nil, err
		}
		c.Size = &s
	}
	return inspectedContainer{c}, nil
}

// inspectedState adds to a state what can be asked of it.
type inspectedState struct{ spec.ContainerState }

func (s inspectedState) Running() bool    { return running(s.Status) }
func (s inspectedState) Paused() bool     { return s.Status == spec.Paused }
func (s inspectedState) Restarting() bool { return s.Status == spec.Restarting }
func (s inspectedState) Dead() bool       { return s.Status == spec.Dead }

// State is the container's state.
func (c inspectedContainer) State() inspectedState {
	return inspectedState{c.Container.State}
}

// RestartCount counts the restarts that the policy made.
func (c inspectedContainer) RestartCount() int { return c.Container.State.RestartCount }

// Path is the program that runs.
func (c inspectedContainer) Path() string {
	if len(c.Args) == 0 {
		return ""
	}
	return c.Args[0]
}

// portBinding is an address of the host that stands for a port, with the names
// that templates know.
type portBinding struct{ HostIp, HostPort string }

type inspectedEndpoint struct {
	IPAddress, Gateway, MacAddress string
	IPPrefixLen                    int
	GlobalIPv6Address, IPv6Gateway string
	Aliases                        []string
}

type inspectedNetworks struct {
	inspectedEndpoint
	Networks map[string]inspectedEndpoint
	Ports    map[string][]portBinding
}

// NetworkSettings are the container's networks and published ports.
func (c inspectedContainer) NetworkSettings() inspectedNetworks {
	out := inspectedNetworks{Networks: map[string]inspectedEndpoint{}, Ports: map[string][]portBinding{}}
	for i, e := range c.Networks {
		address, length, _ := strings.Cut(e.IPv4, "/")
		prefix, _ := strconv.Atoi(length)
		address6, _, _ := strings.Cut(e.IPv6, "/")
		endpoint := inspectedEndpoint{
			IPAddress: address, IPPrefixLen: prefix, Gateway: e.Gateway4, MacAddress: e.MAC,
			GlobalIPv6Address: address6, IPv6Gateway: e.Gateway6, Aliases: e.Aliases,
		}
		out.Networks[e.Network] = endpoint
		if i == 0 {
			out.inspectedEndpoint = endpoint
		}
	}
	for _, port := range c.Exposed {
		out.Ports[string(port)] = nil
	}
	for _, m := range c.Ports {
		for i := range int(max(1, m.Range)) {
			key := fmt.Sprintf("%d/%s", int(m.ContainerPort)+i, protocolOf(m))
			out.Ports[key] = append(out.Ports[key], portBinding{m.HostIP, strconv.Itoa(int(m.HostPort) + i)})
		}
	}
	return out
}
