package bundle

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// addPodMounts fills in what the container sees beside its root: the kernel's
// file systems, the pod's files, the image's volumes, and what was asked for,
// outer ones first. What was asked for takes the place of what the node
// brings to the same target.
func addPodMounts(s *specs.Spec, in PodInput) error {
	asked := make([]specs.Mount, 0, len(in.Container.Config.Mounts))
	taken := map[string]bool{}
	for _, m := range in.Container.Config.Mounts {
		mount, err := podMount(m, in)
		if err != nil {
			return err
		}
		taken[mount.Destination] = true
		asked = append(asked, mount)
		if m.Relabel {
			if err := relabel(mount.Source, in.Pod.MountLabel); err != nil {
				return fmt.Errorf("mount %s: %w", mount.Destination, err)
			}
		}
	}
	own := slices.Concat(podSystemMounts(in), nodeFiles(in.HostnameFile, in.Hosts, in.ResolvConf, in.Container.Config.Security.ReadOnlyRoot), podVolumes(in))
	own = slices.DeleteFunc(own, func(m specs.Mount) bool {
		return taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/")
	})
	slices.SortStableFunc(asked, func(a, b specs.Mount) int { return cmp.Compare(depth(a.Destination), depth(b.Destination)) })
	s.Mounts = slices.Concat(own, asked)
	s.Linux.RootfsPropagation = rootPropagation(s.Mounts)
	return nil
}

// podSystemMounts are the kernel's file systems.
func podSystemMounts(in PodInput) []specs.Mount {
	access := "ro"
	if in.Container.Config.Security.Privileged {
		access = "rw"
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if in.Idmap != nil && in.Pod.NetNS == "" {
		// The host's network namespace is not the user namespace's own, so the
		// kernel makes no sysfs for it.
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"}}
	}
	cgroup := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}}
	if in.Host.Cgroup == 2 && in.Container.Config.Security.Privileged {
		// Mounting it anew without a namespace of its own would change the
		// options of the host's.
		cgroup = specs.Mount{Destination: "/sys/fs/cgroup", Type: "bind", Source: "/sys/fs/cgroup", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"}}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		sys, cgroup,
	}
	ipc := Input{IPCNS: in.Pod.IPCNS, Shm: in.Shm, Host: in.Host}
	if in.Pod.IPCNS == "" {
		ipc.IPCNS = HostNamespace
	}
	return append(mounts, ipcMounts(ipc)...)
}

func podVolumes(in PodInput) []specs.Mount {
	var mounts []specs.Mount
	for target, source := range in.Volumes {
		mounts = append(mounts, specs.Mount{Destination: path.Clean("/" + target), Type: "bind", Source: source, Options: []string{"rbind", "rprivate", "rw"}})
	}
	slices.SortFunc(mounts, func(a, b specs.Mount) int {
		return cmp.Or(cmp.Compare(depth(a.Destination), depth(b.Destination)), cmp.Compare(a.Destination, b.Destination))
	})
	return mounts
}

// podMount checks a mount that was asked for and puts it into the spec's words.
func podMount(m spec.PodMount, in PodInput) (specs.Mount, error) {
	target := path.Clean("/" + m.Target)
	if m.Target == "" || target == "/" {
		return specs.Mount{}, errs.New(errs.Invalid, "mount %q: the root cannot be mounted over", m.Target)
	}
	source, err := mountSource(m, in)
	if err != nil {
		return specs.Mount{}, fmt.Errorf("mount %s: %w", target, err)
	}
	options := []string{"rbind"}
	spread, err := mountPropagation(m, source)
	if err != nil {
		return specs.Mount{}, fmt.Errorf("mount %s: %w", target, err)
	}
	access, err := mountAccess(m, in)
	if err != nil {
		return specs.Mount{}, fmt.Errorf("mount %s: %w", target, err)
	}
	options = append(options, spread, access)
	if m.Image != "" { // files of somebody else's: no program among them becomes root, no node of them a device
		options = append(options, "nosuid", "nodev")
	}
	for _, option := range m.Options {
		if !slices.Contains([]string{"noexec", "nodev", "nosuid"}, option) {
			return specs.Mount{}, errs.New(errs.Invalid, "mount %s: unknown option %q", target, option)
		}
		options = append(options, option)
	}
	out := specs.Mount{Destination: target, Type: "bind", Source: source, Options: unique(options)}
	if len(m.UIDs)+len(m.GIDs) > 0 {
		if !in.idmapMounts() {
			return specs.Mount{}, errs.New(errs.Unsupported, "mount %s: the runtime cannot map owners on mounts", target)
		}
		out.UIDMappings, out.GIDMappings = mappings(m.UIDs), mappings(m.GIDs)
	}
	return out, nil
}

// mountSource is the folder or file on the host. One that is missing is made,
// as a folder.
func mountSource(m spec.PodMount, in PodInput) (string, error) {
	source := m.Source
	if m.Image != "" {
		if source = in.Images[ImageKey(m)]; source == "" {
			return "", errs.New(errs.Internal, "image %s is not mounted", ImageKey(m))
		}
	}
	if !filepath.IsAbs(source) {
		return "", errs.New(errs.Invalid, "source %q is not an absolute path", source)
	}
	real, err := filepath.EvalSymlinks(source)
	if errors.Is(err, os.ErrNotExist) && m.Image == "" {
		if err := os.MkdirAll(source, 0o755); err != nil {
			return "", errs.New(errs.Invalid, "make %s: %w", source, err)
		}
		real, err = filepath.EvalSymlinks(source)
	}
	if err != nil {
		return "", errs.New(errs.Invalid, "source %s: %w", source, err)
	}
	return real, nil
}

// mountPropagation: mounts that are to spread need a source that spreads.
func mountPropagation(m spec.PodMount, source string) (string, error) {
	switch m.Propagation {
	case "", spec.PropagationPrivate:
		return "rprivate", nil
	case spec.PropagationHostToContainer:
		return "rslave", checkPropagation(source, "shared:", "master:")
	case spec.PropagationBidirectional:
		return "rshared", checkPropagation(source, "shared:")
	}
	return "", errs.New(errs.Invalid, "unknown propagation %q", m.Propagation)
}

// mountAccess: a mount is read-only for itself alone, unless it is asked for
// with all below it.
func mountAccess(m spec.PodMount, in PodInput) (string, error) {
	readonly := m.ReadOnly || m.Image != ""
	switch {
	case !m.RecursiveReadOnly && readonly:
		return "ro", nil
	case !m.RecursiveReadOnly:
		return "rw", nil
	case !readonly:
		return "", errs.New(errs.Invalid, "read-only with all below it, and writable, exclude each other")
	case m.Propagation != "" && m.Propagation != spec.PropagationPrivate:
		return "", errs.New(errs.Invalid, "read-only with all below it needs a private propagation, not %s", m.Propagation)
	case !in.recursiveReadOnly():
		return "", errs.New(errs.Unsupported, "the runtime cannot mount read-only with all below it")
	}
	return "rro", nil
}

// recursiveReadOnly is whether the runtime knows "rro".
func (in PodInput) recursiveReadOnly() bool {
	return in.Runtime == nil || slices.Contains(in.Runtime.MountOptions, "rro")
}

// idmapMounts is whether the runtime maps owners on mounts. One that is told
// to and does not know how would silently show the wrong owners.
func (in PodInput) idmapMounts() bool {
	if in.Runtime == nil {
		return true
	}
	l := in.Runtime.Linux
	return l != nil && l.MountExtensions != nil && l.MountExtensions.IDMap != nil && l.MountExtensions.IDMap.Enabled != nil && *l.MountExtensions.IDMap.Enabled
}

// rootPropagation is what the root must be for mounts to spread through it.
func rootPropagation(mounts []specs.Mount) string {
	has := func(option string) bool {
		return slices.ContainsFunc(mounts, func(m specs.Mount) bool { return slices.Contains(m.Options, option) })
	}
	switch {
	case has("rshared"):
		return "rshared"
	case has("rslave"):
		return "rslave"
	}
	return ""
}
