package option

import (
	"encoding/csv"
	"net"
	"net/netip"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// Network reads the value of --network: a name, or name=…,alias=…,ip=….
func Network(text string) (spec.EndpointConfig, error) {
	if text == "" {
		return spec.EndpointConfig{}, errs.New(errs.Invalid, "network: the name is empty")
	}
	if !strings.Contains(text, "=") {
		return spec.EndpointConfig{Network: text}, nil
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return spec.EndpointConfig{}, errs.New(errs.Invalid, "network %q: expected key=value pairs separated by commas", text)
	}
	var endpoint spec.EndpointConfig
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "name":
			endpoint.Network = value
		case "alias":
			endpoint.Aliases = append(endpoint.Aliases, value)
		case "ip":
			endpoint.IPv4 = value
		case "ip6":
			endpoint.IPv6 = value
		case "mac-address":
			endpoint.MAC = value
		default:
			return spec.EndpointConfig{}, errs.New(errs.Invalid, "network %q: unknown key %q; there are name, alias, ip, ip6 and mac-address", text, key)
		}
	}
	if endpoint.Network == "" {
		return spec.EndpointConfig{}, errs.New(errs.Invalid, "network %q: name=… is missing", text)
	}
	return endpoint, Addresses(endpoint)
}

// Addresses checks the addresses that an endpoint asks for.
func Addresses(endpoint spec.EndpointConfig) error {
	if ip, err := netip.ParseAddr(endpoint.IPv4); endpoint.IPv4 != "" && (err != nil || !ip.Is4()) {
		return errs.New(errs.Invalid, "%q is no IPv4 address", endpoint.IPv4)
	}
	if ip, err := netip.ParseAddr(endpoint.IPv6); endpoint.IPv6 != "" && (err != nil || !ip.Is6()) {
		return errs.New(errs.Invalid, "%q is no IPv6 address", endpoint.IPv6)
	}
	if mac, err := net.ParseMAC(endpoint.MAC); endpoint.MAC != "" && (err != nil || len(mac) != 6) {
		return errs.New(errs.Invalid, "%q is no MAC address such as 92:d0:c6:0a:29:33", endpoint.MAC)
	}
	return nil
}

// Host reads the value of --add-host: name:address or name=address.
func Host(text string) (string, error) {
	at := strings.IndexAny(text, ":=")
	if at <= 0 {
		return "", errs.New(errs.Invalid, "host %q: expected name:address", text)
	}
	name, address := text[:at], text[at+1:]
	address = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
	if address == "host-gateway" {
		return name + ":" + address, nil
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return "", errs.New(errs.Invalid, "host %q: %q is no IP address", text, address)
	}
	return name + ":" + ip.String(), nil
}

// Subnets puts together the subnets of a network with their gateways and
// ranges, each of which belongs to the subnet that contains it.
func Subnets(subnets, gateways, ranges []string) ([]spec.Subnet, error) {
	var out []spec.Subnet
	var prefixes []netip.Prefix
	for _, text := range subnets {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, errs.New(errs.Invalid, "subnet %q: expected a range such as 10.9.0.0/24", text)
		}
		out = append(out, spec.Subnet{Subnet: prefix.Masked().String()})
		prefixes = append(prefixes, prefix)
	}
	home := func(what, text string, ip netip.Addr, err error) (*spec.Subnet, error) {
		if err != nil {
			return nil, errs.New(errs.Invalid, "%s %q is none", what, text)
		}
		for i, prefix := range prefixes {
			if prefix.Contains(ip) {
				return &out[i], nil
			}
		}
		return nil, errs.New(errs.Invalid, "%s %s lies in no --subnet", what, text)
	}
	for _, text := range gateways {
		ip, err := netip.ParseAddr(text)
		subnet, err := home("gateway", text, ip, err)
		if err != nil {
			return nil, err
		}
		subnet.Gateway = ip.String()
	}
	for _, text := range ranges {
		prefix, err := netip.ParsePrefix(text)
		subnet, err := home("ip-range", text, prefix.Addr(), err)
		if err != nil {
			return nil, err
		}
		subnet.Range = prefix.Masked().String()
	}
	return out, nil
}
