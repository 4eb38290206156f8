package network

import (
	"net/netip"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// CheckChoice finds, with errs.Invalid, what a container's network settings
// can never mean. Whether its networks exist is seen by Attach.
func CheckChoice(choice spec.NetworkChoice) error {
	for _, want := range choice.Endpoints {
		if _, err := wantedAddrs(want); err != nil {
			return err
		}
		if want.MAC != "" {
			if _, err := parseMAC(want.MAC); err != nil {
				return err
			}
		}
	}
	if _, err := wantedPorts(choice, nil); err != nil {
		return err
	}
	for _, server := range choice.DNS {
		if _, err := netip.ParseAddr(server); err != nil {
			return errs.New(errs.Invalid, "name server %q is not an address", server)
		}
	}
	for _, domain := range choice.DNSSearch {
		if domain != "." && !validHostname(strings.TrimSuffix(domain, ".")) {
			return errs.New(errs.Invalid, "search domain %q is not a domain", domain)
		}
	}
	for _, option := range choice.DNSOptions {
		if option == "" || len(words([]string{option})) == 0 {
			return errs.New(errs.Invalid, "resolver option %q is not one word", option)
		}
	}
	for _, extra := range choice.ExtraHosts {
		name, addr, ok := splitExtraHost(extra)
		if _, err := netip.ParseAddr(addr); !ok || !validHostname(name) || err != nil && addr != "host-gateway" {
			return errs.New(errs.Invalid, "host %q: want name:address or name:host-gateway", extra)
		}
	}
	return nil
}
