package option

import (
	"encoding/csv"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// Publish reads the value of -p: [[address:][port]:]port[/protocol], where
// ports may be ranges and IPv6 addresses stand in brackets, or the long form
// target=80,published=8080,protocol=tcp.
func Publish(text string) (spec.PortMapping, error) {
	mapping, err := publish(text)
	if err != nil {
		return spec.PortMapping{}, errs.New(errs.Invalid, "port %q: %w", text, err)
	}
	return mapping, nil
}

func publish(text string) (spec.PortMapping, error) {
	if strings.Contains(text, "=") {
		var err error
		if text, err = shortForm(text); err != nil {
			return spec.PortMapping{}, err
		}
	}
	rest, protocol, err := cutProtocol(text)
	if err != nil {
		return spec.PortMapping{}, err
	}
	host, container := "", rest
	if at := strings.LastIndexByte(rest, ':'); at >= 0 {
		host, container = rest[:at], rest[at+1:]
	}
	address, hostPorts, err := hostPart(host)
	if err != nil {
		return spec.PortMapping{}, err
	}
	first, count, err := portRange(container)
	if err != nil {
		return spec.PortMapping{}, err
	}
	mapping := spec.PortMapping{HostIP: address, ContainerPort: first, Protocol: protocol}
	if count > 1 {
		mapping.Range = count
	}
	if hostPorts == "" || hostPorts == "0" {
		return mapping, nil
	}
	hostFirst, hostCount, err := portRange(hostPorts)
	if err != nil {
		return spec.PortMapping{}, err
	}
	if hostCount != count {
		return spec.PortMapping{}, errs.New(errs.Invalid, "%d ports of the host cannot stand for %d of the container", hostCount, count)
	}
	mapping.HostPort = hostFirst
	return mapping, nil
}

func shortForm(text string) (string, error) {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return "", errs.New(errs.Invalid, "expected key=value pairs separated by commas")
	}
	var target, published, protocol string
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "target":
			target = value
		case "published":
			published = value
		case "protocol":
			protocol = value
		case "mode": // means something in swarms only
		default:
			return "", errs.New(errs.Invalid, "unknown key %q", key)
		}
	}
	short := target
	if published != "" {
		short = published + ":" + target
	}
	if protocol != "" {
		short += "/" + protocol
	}
	return short, nil
}

func cutProtocol(text string) (rest, protocol string, err error) {
	rest, protocol, given := strings.Cut(text, "/")
	if !given {
		return rest, "tcp", nil
	}
	protocol = strings.ToLower(protocol)
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
		return "", "", errs.New(errs.Invalid, "protocol %q: expected tcp, udp or sctp", protocol)
	}
	return rest, protocol, nil
}

// hostPart splits address:port, [address]:port, port, or address with an
// empty port.
func hostPart(text string) (address, ports string, err error) {
	if after, bracketed := strings.CutPrefix(text, "["); bracketed {
		var closed bool
		address, ports, closed = strings.Cut(after, "]")
		if !closed || ports != "" && !strings.HasPrefix(ports, ":") {
			return "", "", errs.New(errs.Invalid, "expected [address]:port:port")
		}
		ports = strings.TrimPrefix(ports, ":")
	} else if at := strings.LastIndexByte(text, ':'); at >= 0 {
		address, ports = text[:at], text[at+1:]
		if strings.Contains(address, ":") {
			return "", "", errs.New(errs.Invalid, "an IPv6 address stands in brackets, as in [::1]:80:80")
		}
	} else {
		return "", text, nil
	}
	if address == "" {
		return "", "", errs.New(errs.Invalid, "the address is empty")
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return "", "", errs.New(errs.Invalid, "%q is no IP address", address)
	}
	return ip.String(), ports, nil
}

func portRange(text string) (first, count uint16, err error) {
	low, high, isRange := strings.Cut(text, "-")
	if first, err = port(low); err != nil || !isRange {
		return first, 1, err
	}
	last, err := port(high)
	if err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, errs.New(errs.Invalid, "range %q ends before it begins", text)
	}
	return first, last - first + 1, nil
}

func port(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, errs.New(errs.Invalid, "%q is no port from 1 to 65535", text)
	}
	return uint16(n), nil
}

// Expose reads the value of --expose: port or first-last, optionally with
// /protocol.
func Expose(text string) ([]spec.Exposed, error) {
	rest, protocol, err := cutProtocol(text)
	if err != nil {
		return nil, errs.New(errs.Invalid, "expose %q: %w", text, err)
	}
	first, count, err := portRange(rest)
	if err != nil {
		return nil, errs.New(errs.Invalid, "expose %q: %w", text, err)
	}
	exposed := make([]spec.Exposed, count)
	for i := range exposed {
		exposed[i] = spec.Exposed(fmt.Sprintf("%d/%s", int(first)+i, protocol))
	}
	return exposed, nil
}
