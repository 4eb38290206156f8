// Package option reads the values of flags: mounts, ports, environments,
// limits and the like, each in the form that docker's users write.
// Everything is decided from the text, the environment and files named in
// it; nothing here asks the node. Errors have the kind errs.Invalid and say
// what form was expected.
package option

import (
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"berth/base/errs"
	"berth/spec"
)

// KeyValue splits key=value; a key alone has an empty value.
func KeyValue(text string) (key, value string, err error) {
	key, value, _ = strings.Cut(text, "=")
	if key == "" {
		return "", "", errs.New(errs.Invalid, "%q: expected key=value", text)
	}
	return key, value, nil
}

// Map reads a list of key=value; later ones win. No entries make nil.
func Map(entries []string) (map[string]string, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(entries))
	for _, entry := range entries {
		key, value, err := KeyValue(entry)
		if err != nil {
			return nil, err
		}
		m[key] = value
	}
	return m, nil
}

// Filter reads a list of key=value where a key may come again.
func Filter(entries []string) (spec.Filter, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	filter := spec.Filter{}
	for _, entry := range entries {
		key, value, found := strings.Cut(entry, "=")
		key, negated := strings.CutSuffix(strings.TrimSpace(key), "!")
		if !found || key == "" {
			return nil, errs.New(errs.Invalid, "filter %q: expected key=value, such as status=exited", entry)
		}
		if negated { // label!=x is the key "label!"
			key += "!"
		}
		key = strings.ToLower(key)
		filter[key] = append(filter[key], strings.TrimSpace(value))
	}
	return filter, nil
}

// Restart reads a restart policy: no, always, unless-stopped or
// on-failure[:tries].
func Restart(text string) (spec.RestartPolicy, error) {
	name, tries, counted := strings.Cut(text, ":")
	policy := spec.RestartPolicy{Name: name}
	switch name {
	case "", "no", "always", "unless-stopped":
		if counted {
			return spec.RestartPolicy{}, errs.New(errs.Invalid, "restart policy %q: only on-failure takes a number of tries", text)
		}
	case "on-failure":
		if counted {
			n, err := strconv.Atoi(tries)
			if err != nil || n < 0 {
				return spec.RestartPolicy{}, errs.New(errs.Invalid, "restart policy %q: %q is no number of tries", text, tries)
			}
			policy.MaxRetries = n
		}
	default:
		return spec.RestartPolicy{}, errs.New(errs.Invalid, "restart policy %q: expected no, on-failure[:tries], always or unless-stopped", text)
	}
	return policy, nil
}

// Moment reads a point in time: RFC 3339 or a part of it in local time, Unix
// seconds with an optional fraction, or a duration back from now.
func Moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	if at, ok := unixSeconds(text); ok {
		return at, nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04",
		"2006-01-02 15:04:05", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02",
	} {
		if at, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return at, nil
		}
	}
	return time.Time{}, errs.New(errs.Invalid, "time %q: expected 2006-01-02T15:04:05Z, Unix seconds, or a duration such as 10m", text)
}

func unixSeconds(text string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(text, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(fraction) > 9 {
		return time.Time{}, false
	}
	nsec, err := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	if err != nil || nsec < 0 {
		return time.Time{}, false
	}
	return time.Unix(sec, nsec), true
}

// LogOptions reads the bounds of a container's log files.
func LogOptions(entries []string) (spec.LogConfig, error) {
	var config spec.LogConfig
	options, err := Map(entries)
	if err != nil {
		return config, err
	}
	for key, value := range options {
		switch key {
		case "max-size":
			config.MaxSize, err = units.RAMInBytes(value)
		case "max-file":
			config.MaxFiles, err = strconv.Atoi(value)
			if err == nil && config.MaxFiles < 1 {
				err = errs.New(errs.Invalid, "at least 1")
			}
		default:
			return config, errs.New(errs.Invalid, "log option %q: expected max-size or max-file", key)
		}
		if err != nil {
			return config, errs.New(errs.Invalid, "log option %s=%q: %w", key, value, err)
		}
	}
	return config, nil
}
