package option

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// Security adds the values of --security-opt to security.
func Security(security *spec.Security, entries []string) error {
	for _, entry := range entries {
		key, value, hasValue := strings.Cut(entry, "=")
		if !hasValue { // the older form
			key, value, hasValue = strings.Cut(entry, ":")
		}
		if err := securityOption(security, key, value, hasValue); err != nil {
			return errs.New(errs.Invalid, "security option %q: %w", entry, err)
		}
	}
	return nil
}

func securityOption(security *spec.Security, key, value string, hasValue bool) error {
	switch key {
	case "no-new-privileges":
		on := true
		if hasValue {
			var err error
			if on, err = strconv.ParseBool(value); err != nil {
				return errs.New(errs.Invalid, "expected true or false")
			}
		}
		security.NoNewPrivileges = on
	case "seccomp":
		profile, err := seccomp(value)
		if err != nil {
			return err
		}
		security.Seccomp = profile
	case "unmask":
		if !strings.EqualFold(value, "all") {
			return errs.New(errs.Invalid, "expected unmask=all")
		}
		security.Unmasked = true
	case "systempaths":
		if value != "unconfined" {
			return errs.New(errs.Invalid, "expected systempaths=unconfined")
		}
		security.Unmasked = true
	case "apparmor":
		if value != "unconfined" {
			return errs.New(errs.Invalid, "only apparmor=unconfined is there")
		}
	case "label":
		if value != "disable" {
			return errs.New(errs.Invalid, "only label=disable is there")
		}
	default:
		return errs.New(errs.Invalid, "there are no-new-privileges, seccomp=…, unmask=all, systempaths=unconfined, apparmor=unconfined and label=disable")
	}
	return nil
}

func seccomp(value string) (string, error) {
	switch value {
	case "", "builtin":
		return "", nil
	case "unconfined":
		return "unconfined", nil
	}
	profile, err := os.ReadFile(value)
	if err != nil {
		return "", errs.New(errs.Invalid, "profile: %w", err)
	}
	if !json.Valid(profile) {
		return "", errs.New(errs.Invalid, "profile %s is no JSON", value)
	}
	return string(profile), nil
}
