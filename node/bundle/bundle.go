// Package bundle writes the OCI bundle of a container: what was asked of it
// and what its image says, as the config.json that any OCI runtime runs.
//
// What a container gets is what docker gives it, clamped to what this node
// has itself: Host, found out once by Detect. A spec names the lowest OCI
// version that carries it.
package bundle

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// HostNamespace stands for the namespace of the host where a path of one, or
// "" for a new one, could stand.
const HostNamespace = "host"

// Input is what a spec is made of.
type Input struct {
	// Container with Args, and Mounts whose Host is set for binds and volumes.
	Container spec.Container
	Image     spec.ImageConfig
	Host      Host
	// Rootfs is the mounted root file system. User and group names are looked
	// up in it, and a missing working directory is made in it.
	Rootfs string
	// Hostname overrides Hostname(Container), as for a container that shares
	// another's network.
	Hostname string

	// Namespaces to join: "" for a new one, HostNamespace, or a path.
	NetNS, PIDNS, IPCNS, UTSNS string
	// Idmap is for a user namespace; nil for the host's.
	Idmap *Idmap

	// Files bound over those of the image, where set.
	ResolvConf, Hosts, HostnameFile string
	// Shm is the /dev/shm of the container whose IPC namespace is joined, as
	// BorrowShm made it.
	Shm string

	Hooks *specs.Hooks
}

// Idmap is the ids of a user namespace.
type Idmap struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// Spec makes the spec. What was asked and can never be is errs.Invalid, and
// names it; what this machine cannot is errs.Unsupported.
func Spec(in Input) (*specs.Spec, error) {
	c := in.Container.Config
	if err := checkRemap(in); err != nil {
		return nil, err
	}
	root, err := openRoot(in.Rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()

	s := &specs.Spec{
		Version:     "1.0.2",
		Root:        &specs.Root{Path: in.Rootfs, Readonly: c.Security.ReadOnlyRoot},
		Annotations: c.Annotations,
		Hooks:       in.Hooks,
		Linux: &specs.Linux{
			CgroupsPath: CgroupPath(c.CgroupParent, in.Container.ID),
			Namespaces:  namespaces(in),
		},
	}
	if in.UTSNS == "" {
		s.Hostname = hostname(in)
	}
	if in.Idmap != nil {
		s.Linux.UIDMappings, s.Linux.GIDMappings = in.Idmap.UIDs, in.Idmap.GIDs
	}
	if s.Process, err = process(in, root); err != nil {
		return nil, err
	}
	if err := addMounts(s, in); err != nil {
		return nil, err
	}
	if err := addInit(s, in); err != nil {
		return nil, err
	}
	if err := addLimits(s, in); err != nil {
		return nil, err
	}
	if s.Linux.Sysctl, err = sysctls(in); err != nil {
		return nil, err
	}
	if !c.Security.Privileged && !c.Security.Unmasked {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	if s.Linux.Seccomp, err = seccompProfile(c.Security, s, in.Host); err != nil {
		return nil, err
	}
	if sec := s.Linux.Seccomp; sec != nil && (sec.ListenerPath != "" || sec.ListenerMetadata != "") {
		s.Version = "1.1.0"
	}
	return s, workDir(root, s, in.Idmap)
}

// Write puts the spec into the bundle at dir, as config.json.
func Write(dir string, s *specs.Spec) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// CgroupPath is where a container's cgroup lies in every hierarchy; parent is
// its spec.ContainerConfig.CgroupParent.
func CgroupPath(parent, id string) string {
	if parent == "" {
		parent = "/berth"
	}
	return path.Join("/", parent, id)
}

// Hostname is the name that the container has when nothing else decides.
func Hostname(c spec.Container) string {
	if c.Config.Hostname != "" {
		return c.Config.Hostname
	}
	return c.ID[:min(12, len(c.ID))]
}

func hostname(in Input) string {
	switch {
	case in.Hostname != "":
		return in.Hostname
	case in.Container.Config.Hostname == "" && (in.UTSNS == HostNamespace || in.NetNS == HostNamespace):
		return in.Host.Hostname
	}
	return Hostname(in.Container)
}

// checkRemap refuses what a user namespace takes away.
func checkRemap(in Input) error {
	if in.Idmap == nil {
		return nil
	}
	switch {
	case in.Container.Config.Security.Privileged:
		return errs.New(errs.Invalid, "a privileged container cannot have a user namespace: set userns to host")
	case in.NetNS == HostNamespace:
		return errs.New(errs.Invalid, "a container with a user namespace cannot share the host's network: set userns to host")
	case in.PIDNS == HostNamespace:
		return errs.New(errs.Invalid, "a container with a user namespace cannot share the host's processes: set userns to host")
	}
	return nil
}

// namespaces of the container. A namespace of the host is one left out.
func namespaces(in Input) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(kind specs.LinuxNamespaceType, join string) {
		switch join {
		case HostNamespace:
		default:
			list = append(list, specs.LinuxNamespace{Type: kind, Path: join})
		}
	}
	add(specs.NetworkNamespace, in.NetNS)
	add(specs.PIDNamespace, in.PIDNS)
	add(specs.IPCNamespace, in.IPCNS)
	add(specs.UTSNamespace, in.UTSNS)
	if in.Idmap != nil {
		add(specs.UserNamespace, "")
	}
	if privateCgroup(in) {
		add(specs.CgroupNamespace, "")
	}
	return list
}

// privateCgroup: as docker has it, a container sees its own cgroup as the
// root of all on version 2, and the host's tree on version 1.
func privateCgroup(in Input) bool {
	switch in.Container.Config.CgroupMode {
	case "host":
		return false
	case "private":
		return true
	}
	return in.Host.Cgroup == 2
}

// sysctls checks those asked for: only what belongs to a namespace of the
// container's own may be set.
func sysctls(in Input) (map[string]string, error) {
	set := map[string]string{}
	if in.NetNS != HostNamespace && in.Idmap == nil && !joined(in.Container.Config.Network.Mode) {
		// Who is root only in here may still bind low ports and ping.
		set["net.ipv4.ip_unprivileged_port_start"] = "0"
		set["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for name, value := range in.Container.Config.Sysctls {
		name = strings.ReplaceAll(name, "/", ".")
		own, what := false, ""
		switch {
		case strings.HasPrefix(name, "net."):
			own, what = in.NetNS != HostNamespace, "network"
		case name == "kernel.shmmax" || name == "kernel.shmall" || name == "kernel.shmmni" || name == "kernel.shm_rmid_forced" ||
			strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue."):
			own, what = in.IPCNS != HostNamespace, "IPC"
		case name == "kernel.domainname":
			own, what = in.UTSNS != HostNamespace, "UTS"
		default:
			return nil, errs.New(errs.Invalid, "sysctl %s belongs to no namespace and would change the host", name)
		}
		if !own {
			return nil, errs.New(errs.Invalid, "sysctl %s cannot be set in the host's %s namespace", name, what)
		}
		set[name] = value
	}
	if d := in.Container.Config.Domainname; d != "" && in.UTSNS == "" {
		set["kernel.domainname"] = d // the spec's own field needs OCI 1.1
	}
	return set, nil
}

// joined: the container's network is another container's.
func joined(mode string) bool { return strings.HasPrefix(mode, "container:") }
