package container

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// test says whether a container fits.
type test func(*spec.Container) bool

// compile makes one test of a filter. The values of one key are alternatives,
// but for labels: all of them have to be there.
func (s *Set) compile(ctx context.Context, filter spec.Filter) (test, error) {
	var tests []test
	for _, key := range slices.Sorted(maps.Keys(filter)) {
		var alternatives []test
		for _, value := range filter[key] {
			t, err := s.compileOne(ctx, key, value)
			if err != nil {
				return nil, err
			}
			alternatives = append(alternatives, t)
		}
		if key == "label" || key == "label!" {
			tests = append(tests, alternatives...)
		} else if len(alternatives) > 0 {
			tests = append(tests, anyOf(alternatives))
		}
	}
	return func(c *spec.Container) bool {
		return !slices.ContainsFunc(tests, func(t test) bool { return !t(c) })
	}, nil
}

func anyOf(tests []test) test {
	return func(c *spec.Container) bool {
		return slices.ContainsFunc(tests, func(t test) bool { return t(c) })
	}
}

func (s *Set) compileOne(ctx context.Context, key, value string) (test, error) {
	switch key {
	case "id":
		return func(c *spec.Container) bool { return strings.HasPrefix(c.ID, value) }, nil
	case "name":
		return byName(value)
	case "pod":
		return func(c *spec.Container) bool { return c.Pod != "" && strings.HasPrefix(c.Pod, value) }, nil
	case "label":
		return func(c *spec.Container) bool { return hasLabel(c.Config.Labels, value) }, nil
	case "label!":
		return func(c *spec.Container) bool { return !hasLabel(c.Config.Labels, value) }, nil
	case "status":
		return byStatus(value)
	case "ancestor":
		return s.byAncestor(ctx, value), nil
	case "exited":
		return byExitCode(value)
	case "before", "since":
		return s.byAge(key, value)
	case "network":
		return func(c *spec.Container) bool { return onNetwork(c, value) }, nil
	case "volume":
		return func(c *spec.Container) bool {
			return slices.ContainsFunc(c.Mounts, func(m spec.Mounted) bool {
				return m.Name == value || m.Source == value || m.Target == value
			})
		}, nil
	case "health":
		return byHealth(value)
	case "publish", "expose":
		return byPort(key, value)
	}
	return nil, errs.New(errs.Invalid, "containers cannot be filtered by %q", key)
}

func byName(pattern string) (test, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, errs.New(errs.Invalid, "filter name=%s: %w", pattern, err)
	}
	// People who come from docker write ^/name$.
	return func(c *spec.Container) bool { return re.MatchString(c.Name) || re.MatchString("/"+c.Name) }, nil
}

func hasLabel(labels map[string]string, want string) bool {
	key, value, valued := strings.Cut(want, "=")
	have, ok := labels[key]
	return ok && (!valued || have == value)
}

func byStatus(value string) (test, error) {
	states := []spec.State{spec.Created, spec.Running, spec.Paused, spec.Restarting, spec.Stopped, spec.Removing, spec.Dead}
	if value == "stopped" {
		value = string(spec.Stopped)
	}
	if !slices.Contains(states, spec.State(value)) {
		return nil, errs.New(errs.Invalid, "filter status=%s: want one of %v", value, states)
	}
	return func(c *spec.Container) bool { return c.State.Status == spec.State(value) }, nil
}

func (s *Set) byAncestor(ctx context.Context, ref string) test {
	image, err := s.Images.Get(ctx, ref)
	return func(c *spec.Container) bool {
		return err == nil && c.ImageID == image.ID || c.Image == ref
	}
}

func byExitCode(value string) (test, error) {
	code, err := strconv.Atoi(value)
	if err != nil {
		return nil, errs.New(errs.Invalid, "filter exited=%s: want a number", value)
	}
	return func(c *spec.Container) bool {
		return c.State.Status == spec.Stopped && c.State.ExitCode == code
	}, nil
}

func (s *Set) byAge(key, ref string) (test, error) {
	other, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	at := other.get().Created
	return func(c *spec.Container) bool {
		return c.ID != other.id && (key == "before" && c.Created.Before(at) || key == "since" && c.Created.After(at))
	}, nil
}

func onNetwork(c *spec.Container, name string) bool {
	mode := orElse(c.Config.Network.Mode, "bridge")
	return mode == name ||
		slices.ContainsFunc(c.Networks, func(e spec.Endpoint) bool { return e.Network == name }) ||
		slices.ContainsFunc(c.Config.Network.Endpoints, func(e spec.EndpointConfig) bool { return e.Network == name })
}

func byHealth(value string) (test, error) {
	if !slices.Contains([]string{"starting", "healthy", "unhealthy", "none"}, value) {
		return nil, errs.New(errs.Invalid, "filter health=%s: want starting, healthy, unhealthy or none", value)
	}
	return func(c *spec.Container) bool {
		if c.State.Health == nil {
			return value == "none"
		}
		return c.State.Health.Status == value
	}, nil
}

// byPort takes port, port/protocol, or from-to/protocol.
func byPort(key, value string) (test, error) {
	ports, protocol, _ := strings.Cut(value, "/")
	first, last, ranged := strings.Cut(ports, "-")
	from, err := strconv.ParseUint(first, 10, 16)
	to := from
	if err == nil && ranged {
		to, err = strconv.ParseUint(last, 10, 16)
	}
	if err != nil || to < from {
		return nil, errs.New(errs.Invalid, "filter %s=%s: want port, port/protocol or from-to/protocol", key, value)
	}
	fits := func(port uint16, proto string) bool {
		return uint64(port) >= from && uint64(port) <= to && orElse(proto, "tcp") == orElse(protocol, "tcp")
	}
	if key == "expose" {
		return func(c *spec.Container) bool {
			return slices.ContainsFunc(c.Exposed, func(e spec.Exposed) bool {
				number, proto, _ := strings.Cut(string(e), "/")
				port, err := strconv.ParseUint(number, 10, 16)
				return err == nil && fits(uint16(port), proto)
			})
		}, nil
	}
	return func(c *spec.Container) bool {
		return slices.ContainsFunc(slices.Concat(c.Ports, c.Config.Network.Ports), func(p spec.PortMapping) bool {
			for i := range max(p.Range, 1) {
				if fits(p.ContainerPort+i, p.Protocol) {
					return true
				}
			}
			return false
		})
	}, nil
}
