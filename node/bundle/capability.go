package bundle

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// defaultCaps are the fourteen that docker gives a container.
func defaultCaps() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// capabilities are those of the container, sorted, none above what the node
// has itself. A single one that is asked for by name and cannot be given is
// errs.Unsupported.
func capabilities(s spec.Security, h Host) ([]string, error) {
	if s.Privileged {
		return h.Caps, nil
	}
	add, addAll, err := capNames(s.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames(s.CapDrop)
	if err != nil {
		return nil, err
	}
	for _, name := range add {
		if !h.can(name) {
			return nil, errs.New(errs.Unsupported, "capability %s: this node does not have it", name)
		}
	}
	var caps []string
	switch {
	case addAll:
		caps = slices.Clone(h.Caps)
	case !dropAll:
		caps = slices.DeleteFunc(defaultCaps(), func(name string) bool { return !h.can(name) })
	}
	dropped := func(name string) bool { return slices.Contains(drop, name) }
	caps = slices.DeleteFunc(append(slices.DeleteFunc(caps, dropped), add...), func(name string) bool { return addAll && dropped(name) })
	slices.Sort(caps)
	return slices.Compact(caps), nil
}

// capNames writes names as the spec does, and takes ALL out.
func capNames(asked []string) (names []string, all bool, err error) {
	for _, name := range asked {
		upper := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "CAP_")
		known := slices.ContainsFunc(capability.ListKnown(), func(c capability.Cap) bool {
			return strings.EqualFold(c.String(), upper)
		})
		switch {
		case upper == "ALL":
			all = true
		case known:
			names = append(names, "CAP_"+upper)
		default:
			return nil, false, errs.New(errs.Invalid, "capability %q: no such capability", name)
		}
	}
	return names, all, nil
}

// grant puts capabilities into the sets of a process. A user other than root
// gets them by executing a file that has them, no other way.
func grant(caps []string, uid uint32) *specs.LinuxCapabilities {
	if uid != 0 {
		return &specs.LinuxCapabilities{Bounding: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}
