package bundle

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

const initTarget = "/dev/init" // on a tmpfs: it leaves nothing in the container's layer

// addMounts fills in what the container sees beside its root: what every
// container needs, then the node's files, then what was asked for. A mount
// that was asked for takes the place of another at its target.
func addMounts(s *specs.Spec, in Input) error {
	asked := make([]specs.Mount, 0, len(in.Container.Mounts))
	taken := map[string]bool{}
	for _, m := range in.Container.Mounts {
		mount, err := userMount(m)
		if err != nil {
			return err
		}
		if taken[mount.Destination] {
			return errs.New(errs.Invalid, "mount %s: two mounts for one target", mount.Destination)
		}
		taken[mount.Destination] = true
		asked = append(asked, mount)
	}
	slices.SortStableFunc(asked, func(a, b specs.Mount) int { return cmp.Compare(depth(a.Destination), depth(b.Destination)) })

	for _, m := range slices.Concat(systemMounts(in), nodeFiles(in.HostnameFile, in.Hosts, in.ResolvConf, in.Container.Config.Security.ReadOnlyRoot)) {
		if taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		s.Mounts = append(s.Mounts, m)
	}
	s.Mounts = append(s.Mounts, asked...)
	return propagate(s)
}

func depth(target string) int { return strings.Count(target, "/") }

// systemMounts are the kernel's file systems.
func systemMounts(in Input) []specs.Mount {
	privileged := in.Container.Config.Security.Privileged
	access := "ro"
	if privileged {
		access = "rw"
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if in.Idmap != nil && in.NetNS != "" {
		// The network namespace is not the user namespace's own, so the kernel
		// makes no sysfs for it. What the runtime hides in this one it must not
		// hide from the host, where a volume lets mounts spread.
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"}}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		sys,
	}
	if in.Idmap == nil || in.NetNS == "" {
		mounts = append(mounts, specs.Mount{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{access, "nosuid", "noexec", "nodev"},
		})
	}
	return append(mounts, ipcMounts(in)...)
}

// ipcMounts go with the IPC namespace.
func ipcMounts(in Input) []specs.Mount {
	bind := func(target, source string) specs.Mount {
		return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
	}
	mqueue := specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}
	switch {
	case in.IPCNS == HostNamespace && !in.Host.Mqueue:
		return []specs.Mount{mqueue, bind("/dev/shm", "/dev/shm")}
	case in.IPCNS == HostNamespace:
		return []specs.Mount{bind("/dev/mqueue", "/dev/mqueue"), bind("/dev/shm", "/dev/shm")}
	case in.IPCNS != "" && in.Shm != "":
		return []specs.Mount{mqueue, bind("/dev/shm", in.Shm)}
	}
	size := in.Container.Config.ShmSize
	if size <= 0 {
		size = 64 << 20
	}
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(size, 10)}}
	return []specs.Mount{mqueue, shm}
}

// nodeFiles are the files that the node writes for a container or its pod; "" is
// none. No programs and devices are in them; and in a user namespace the kernel
// wants to hear again how they were mounted when they are to be read-only.
func nodeFiles(hostname, hosts, resolv string, readOnly bool) []specs.Mount {
	var mounts []specs.Mount
	for _, f := range [][2]string{{"/etc/hostname", hostname}, {"/etc/hosts", hosts}, {"/etc/resolv.conf", resolv}} {
		if f[1] == "" {
			continue
		}
		options := []string{"rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"}
		if readOnly {
			options[5] = "ro"
		}
		mounts = append(mounts, specs.Mount{Destination: f[0], Type: "bind", Source: f[1], Options: options})
	}
	return mounts
}

// addInit puts the init program before the command.
func addInit(s *specs.Spec, in Input) error {
	if !in.Container.Config.Init {
		return nil
	}
	if in.Host.Init == "" {
		return errs.New(errs.Unsupported, "init: this node has no static init program (docker-init, tini-static, catatonit)")
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: initTarget, Type: "bind", Source: in.Host.Init, Options: []string{"bind", "ro"}})
	s.Process.Args = append([]string{initTarget, "--"}, s.Process.Args...)
	return nil
}

// userMount checks a mount that was asked for and puts it into the spec's words.
func userMount(m spec.Mounted) (specs.Mount, error) {
	target := path.Clean("/" + m.Target)
	switch {
	case !path.IsAbs(m.Target):
		return specs.Mount{}, errs.New(errs.Invalid, "mount %q: the target is not an absolute path", m.Target)
	case target == "/":
		return specs.Mount{}, errs.New(errs.Invalid, "mount %q: the root cannot be mounted over", m.Target)
	}
	switch m.Type {
	case "tmpfs":
		return tmpfsMount(m, target)
	case "bind", "volume":
		return bindMount(m, target)
	}
	return specs.Mount{}, errs.New(errs.Invalid, "mount %s: unknown type %q", target, m.Type)
}

func tmpfsMount(m spec.Mounted, target string) (specs.Mount, error) {
	options := []string{"noexec", "nosuid", "nodev"}
	for option := range splitOptions(m.Options) {
		name, _, _ := strings.Cut(option, "=")
		switch name {
		case "exec", "suid", "dev":
			options = slices.DeleteFunc(options, func(o string) bool { return o == "no"+name })
			options = append(options, name)
		case "ro", "rw", "noexec", "nosuid", "nodev", "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge",
			"atime", "noatime", "diratime", "nodiratime", "relatime", "strictatime", "sync", "async", "swap", "noswap":
			options = append(options, option)
		default:
			return specs.Mount{}, errs.New(errs.Invalid, "tmpfs %s: unknown option %q", target, option)
		}
	}
	if m.TmpfsSize > 0 {
		options = append(options, "size="+strconv.FormatInt(m.TmpfsSize, 10))
	}
	if m.TmpfsMode != 0 {
		options = append(options, "mode="+strconv.FormatUint(uint64(m.TmpfsMode), 8))
	}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: unique(options)}, nil
}

func bindMount(m spec.Mounted, target string) (specs.Mount, error) {
	source := m.Host
	if _, err := os.Stat(source); errors.Is(err, os.ErrNotExist) || source == "" {
		return specs.Mount{}, errs.New(errs.Invalid, "mount %s: there is no %q on the host", target, firstOf(source, m.Source))
	} else if err != nil {
		return specs.Mount{}, errs.New(errs.Invalid, "mount %s: %w", target, err)
	}
	bind, propagation, readonly := "rbind", m.Propagation, m.ReadOnly
	if m.Recursive == "disabled" {
		bind = "bind"
	}
	var extra []string
	for option := range splitOptions(m.Options) {
		switch option {
		case "ro":
			readonly = true
		case "rw", "z", "Z", "consistent", "cached", "delegated", "nocopy", "copy": // for others, or the default
		case "bind", "rbind":
			bind = option
		case "private", "rprivate", "shared", "rshared", "slave", "rslave":
			propagation = option
		case "noexec", "nosuid", "nodev", "exec", "suid", "dev", "noatime", "nodiratime", "relatime", "nosymfollow":
			extra = append(extra, option)
		default:
			return specs.Mount{}, errs.New(errs.Invalid, "mount %s: unknown option %q", target, option)
		}
	}
	options := append([]string{bind, firstOf(propagation, "rprivate")}, extra...)
	if readonly {
		options = append(options, "ro")
		below, err := mountsBelow(source, bind)
		if err != nil {
			return specs.Mount{}, fmt.Errorf("mount %s: %w", target, err)
		}
		if below { // plain ro would leave these writable
			options = append(options, "rro")
		}
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: options}, nil
}

// mountsBelow is whether a recursive bind of source brings further mounts.
func mountsBelow(source, bind string) (bool, error) {
	if bind != "rbind" {
		return false, nil
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		below := strings.HasPrefix(m.Mountpoint, strings.TrimSuffix(source, "/")+"/")
		return !below, below
	})
	return len(mounts) > 0, err
}

func splitOptions(options string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for option := range strings.SplitSeq(options, ",") {
			if option = strings.TrimSpace(option); option != "" && !yield(option) {
				return
			}
		}
	}
}

// propagate sets how mounts spread between the host and the container's
// root: mounts that are to spread need a source that spreads, and a root
// that lets them.
func propagate(s *specs.Spec) error {
	for _, m := range s.Mounts {
		for _, option := range m.Options {
			switch option {
			case "shared", "rshared":
				if err := checkPropagation(m.Source, "shared:"); err != nil {
					return err
				}
				s.Linux.RootfsPropagation = "shared"
			case "slave", "rslave":
				if err := checkPropagation(m.Source, "shared:", "master:"); err != nil {
					return err
				}
				if s.Linux.RootfsPropagation == "" {
					s.Linux.RootfsPropagation = "rslave"
				}
			}
		}
	}
	return nil
}

// checkPropagation wants the mount that source lies on to have one of tags.
func checkPropagation(source string, tags ...string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(source))
	if err != nil || len(mounts) == 0 {
		return fmt.Errorf("find the mount of %s: %w", source, err)
	}
	on := slices.MaxFunc(mounts, func(a, b *mountinfo.Info) int { return cmp.Compare(len(a.Mountpoint), len(b.Mountpoint)) })
	for _, tag := range tags {
		if strings.Contains(on.Optional, tag) {
			return nil
		}
	}
	return errs.New(errs.Invalid, "%s lies on the mount %s, which does not spread: make it shared with mount --make-rshared", source, on.Mountpoint)
}
