package bundle

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
)

// lookUp finds a user, with the groups that the image and the caller add,
// and the home directory.
func lookUp(r root, name string, groups []string) (specs.User, string, error) {
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
	u.AdditionalGids = append(u.AdditionalGids, u.GID) // else a process could drop it and slip through a mode that denies the group
	for _, id := range found.Sgids {
		u.AdditionalGids = append(u.AdditionalGids, uint32(id))
	}
	if len(groups) > 0 {
		ids, err := user.GetAdditionalGroups(groups, bytes.NewReader(group))
		if err != nil {
			return specs.User{}, "", errs.New(errs.Invalid, "groups %q: %w", groups, err)
		}
		slices.Sort(ids)
		for _, id := range ids {
			u.AdditionalGids = append(u.AdditionalGids, uint32(id))
		}
	}
	u.AdditionalGids = unique(u.AdditionalGids)
	return u, firstOf(found.Home, "/"), nil
}

// execUser finds a user in the files of an image. Those are the image's: an id
// in them that the kernel would cut down to another one, root's for instance,
// or take for none at all, is refused.
func execUser(name string, passwd, group []byte) (*user.ExecUser, error) {
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return nil, errs.New(errs.Invalid, "user %q: %w", name, err)
	}
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id > math.MaxInt32 {
			return nil, errs.New(errs.Invalid, "user %q: the image gives it the id %d, want 0 to %d", name, id, math.MaxInt32)
		}
	}
	return found, nil
}

// unique drops what came before, and keeps the order.
func unique[T comparable](list []T) []T {
	seen := map[T]bool{}
	return slices.DeleteFunc(list, func(v T) bool {
		was := seen[v]
		seen[v] = true
		return was
	})
}
