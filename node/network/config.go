package network

import (
	"regexp"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// Options of bridge networks. The long names are those of docker.
const (
	optInterface  = "interface"
	optMasquerade = "masquerade"
)

// options maps what is accepted to what it means.
func option(key string) (string, bool) {
	switch key {
	case optInterface, "com.docker.network.bridge.name":
		return optInterface, true
	case optMasquerade, "com.docker.network.bridge.enable_ip_masquerade":
		return optMasquerade, true
	}
	return "", false
}

var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// checkConfig finds what can never work, before anything is touched.
func checkConfig(cfg spec.NetworkConfig) error {
	switch {
	case cfg.Name == "":
		return errs.New(errs.Invalid, "a network needs a name")
	case !networkName.MatchString(cfg.Name):
		return errs.New(errs.Invalid, "%q cannot name a network: want letters, digits, _ . or -, at most 128, the first a letter or digit", cfg.Name)
	case slices.Contains([]string{Bridge, Host, None, "default"}, cfg.Name):
		return errs.New(errs.Invalid, "%s is a name of the node's own networks", cfg.Name)
	case cfg.Driver == "cni":
		return errs.New(errs.Unsupported, "networks of driver cni are made by files in the CNI configuration folder")
	case cfg.Driver != "" && cfg.Driver != Bridge:
		return errs.New(errs.Unsupported, "no network driver %q: there is bridge", cfg.Driver)
	case cfg.MTU != 0 && (cfg.MTU < 68 || cfg.MTU > 65535):
		return errs.New(errs.Invalid, "MTU %d: want 68 to 65535", cfg.MTU)
	case cfg.IPv6 && cfg.MTU != 0 && cfg.MTU < 1280:
		return errs.New(errs.Invalid, "MTU %d: IPv6 needs 1280 at least", cfg.MTU)
	}
	for _, want := range cfg.Subnets {
		if _, err := parseSubnet(want); err != nil {
			return err
		}
	}
	return checkOptions(cfg.Options)
}

func checkOptions(options map[string]string) error {
	for key, value := range options {
		known, ok := option(key)
		switch {
		case !ok:
			return errs.New(errs.Invalid, "no network option %q: there are %s and %s", key, optInterface, optMasquerade)
		case known == optMasquerade && value != "true" && value != "false":
			return errs.New(errs.Invalid, "option %s=%q: want true or false", key, value)
		case known == optInterface && (value == "" || len(value) > 15 || strings.ContainsAny(value, "/: \t\n\x00%") || value == "." || value == ".." || value == "all" || value == "default"):
			return errs.New(errs.Invalid, "option %s=%q cannot name an interface: want at most 15 characters", key, value)
		}
	}
	return nil
}

// plainOptions gives every option its short name.
func plainOptions(options map[string]string) map[string]string {
	if len(options) == 0 {
		return nil
	}
	plain := map[string]string{}
	for key, value := range options {
		if known, ok := option(key); ok {
			plain[known] = value
		}
	}
	return plain
}

// isShortID says whether ref is the beginning of id.
func isShortID(ref, id string) bool {
	return ref != "" && len(ref) <= len(id) && strings.HasPrefix(id, ref)
}
