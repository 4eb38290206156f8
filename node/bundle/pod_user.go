package bundle

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// podAccount finds the user of a container and its home directory: the one
// asked for, else the image's. The groups of the image's /etc/group come
// along, unless only those asked for may.
func podAccount(r root, s spec.PodSecurity, image string) (specs.User, string, error) {
	name := firstOf(askedUser(s), image)
	passwd, err := r.accounts("/etc/passwd")
	if err != nil {
		return specs.User{}, "", fmt.Errorf("look up user: %w", err)
	}
	group, err := r.accounts("/etc/group")
	if err != nil {
		return specs.User{}, "", fmt.Errorf("look up user: %w", err)
	}
	found, err := execUser(name, passwd, group)
	if err != nil {
		return specs.User{}, "", err
	}
	u := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	// With its own group, else a process could drop it and slip through a mode
	// that denies the group.
	groups := []int64{int64(u.GID)}
	if !s.StrictGroups {
		alone, _, explicit := strings.Cut(name, ":")
		if explicit { // GetExecUser looks into /etc/group for users without one
			if found, err = execUser(alone, passwd, group); err != nil {
				return specs.User{}, "", err
			}
		}
		for _, id := range found.Sgids {
			groups = append(groups, int64(id))
		}
	}
	for _, id := range unique(slices.Concat(groups, s.Groups)) {
		if id < 0 || id >= math.MaxUint32 { // the last one is none
			return specs.User{}, "", errs.New(errs.Invalid, "group %d: no such id is possible", id)
		}
		u.AdditionalGids = append(u.AdditionalGids, uint32(id))
	}
	return u, firstOf(found.Home, "/"), nil
}

// askedUser is the user asked for as "user" or "user:group"; "" for none.
func askedUser(s spec.PodSecurity) string {
	name := s.UserName
	if name == "" && s.User != nil {
		name = strconv.FormatInt(*s.User, 10)
	}
	if name != "" && s.Group != nil {
		name += ":" + strconv.FormatInt(*s.Group, 10)
	}
	return name
}

func podUser(u specs.User) spec.PodUser {
	out := spec.PodUser{UID: int64(u.UID), GID: int64(u.GID)}
	for _, id := range u.AdditionalGids {
		out.Groups = append(out.Groups, int64(id))
	}
	return out
}

// podCapabilities are the sets of the first process, none above what the node
// has. What is dropped by name is dropped whoever added it.
func podCapabilities(s spec.PodSecurity, h Host) (*specs.LinuxCapabilities, error) {
	asked := s.Capabilities
	if asked == nil {
		asked = &spec.PodCapabilities{}
	}
	add, addAll, err := capNames(asked.Add)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames(asked.Drop)
	if err != nil {
		return nil, err
	}
	ambient, ambientAll, err := capNames(asked.Ambient)
	if err != nil {
		return nil, err
	}
	var caps []string
	switch {
	case s.Privileged, addAll && !dropAll, ambientAll && !dropAll:
		caps = slices.Clone(h.Caps)
	case !dropAll:
		caps = slices.DeleteFunc(defaultCaps(), func(name string) bool { return !h.can(name) })
	}
	if ambientAll {
		ambient = slices.Clone(caps)
	}
	if !s.Privileged { // who has all can be given none, nor lose any
		for _, name := range slices.Concat(add, ambient) {
			if !h.can(name) {
				return nil, errs.New(errs.Unsupported, "capability %s: this node does not have it", name)
			}
		}
		caps = slices.Concat(caps, add, ambient)
		caps = slices.DeleteFunc(caps, func(name string) bool { return slices.Contains(drop, name) })
	}
	slices.Sort(caps)
	caps = slices.Compact(caps)
	ambient = slices.DeleteFunc(ambient, func(name string) bool { return !slices.Contains(caps, name) })
	slices.Sort(ambient)
	ambient = slices.Compact(ambient)
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: ambient, Ambient: ambient}, nil
}
