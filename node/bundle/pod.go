package bundle

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"berth/base/errs"
	"berth/spec"
)

// PodInput is what the spec of a container in a pod is made of.
type PodInput struct {
	// Pod with the paths of its kernel namespaces and its SELinux labels.
	Pod       spec.Pod
	Container spec.PodContainer
	Image     spec.ImageConfig
	Host      Host
	// Runtime is what the OCI runtime says of itself; nil: all that was asked
	// for is taken for possible.
	Runtime *features.Features
	// Rootfs is the mounted root file system, with Idmap's owners where there
	// is one. Users and groups are looked up in it, and a missing working
	// directory is made in it.
	Rootfs string
	// CgroupPath is the container's cgroup in every hierarchy; see CgroupPath.
	CgroupPath string
	// Idmap is the pod's user namespace, from PodIdmap; nil for the host's.
	Idmap *Idmap
	// PIDNS is the path of the namespace that a container of PID mode pod or
	// target joins: the pod's, or that of the target's process.
	PIDNS string

	// Files and a folder of the pod that are bound over those of the image,
	// where set. Shm is left out where the pod has the host's IPC namespace.
	ResolvConf, Hosts, HostnameFile, Shm string
	// Images: the value of PodMount.Image, with "/"+ImageSubPath where there
	// is one, to the folder on the host.
	Images map[string]string
	// Volumes are folders on the host for what the image declares as volumes;
	// mounts of the container take their place.
	Volumes map[string]string

	// Devices injects the devices of Config.CDI and of annotations; nil where
	// there is no registry.
	Devices CDI
	// ProfileDir is where seccomp profiles with a relative name lie.
	ProfileDir string
	// Annotations are names, or patterns of them, of annotations of pods and
	// containers that the runtime may see: some change what it does.
	Annotations []string
	// DefaultSeccomp: who names no seccomp profile has the default one.
	DefaultSeccomp bool
}

// CDI puts devices, named vendor.com/class=name, into a spec.
type CDI interface {
	Inject(s *specs.Spec, names []string) error
}

// ImageKey is the key of a mount in PodInput.Images.
func ImageKey(m spec.PodMount) string {
	if m.ImageSubPath == "" {
		return m.Image
	}
	return m.Image + "/" + m.ImageSubPath
}

// PodSpec makes the spec of a container in a pod, and says who its first
// process will be. What was asked and can never be is errs.Invalid, and names
// it; what this machine or the runtime cannot is errs.Unsupported.
//
// Sources of mounts that are missing are made, as folders.
func PodSpec(ctx context.Context, in PodInput) (*specs.Spec, spec.PodUser, error) {
	c := in.Container.Config
	if err := checkPod(in); err != nil {
		return nil, spec.PodUser{}, err
	}
	root, err := openRoot(in.Rootfs)
	if err != nil {
		return nil, spec.PodUser{}, err
	}
	defer root.Close()

	s := &specs.Spec{
		Version:     "1.0.2",
		Root:        &specs.Root{Path: in.Rootfs, Readonly: c.Security.ReadOnlyRoot},
		Annotations: podAnnotations(in),
		Linux:       &specs.Linux{CgroupsPath: in.CgroupPath},
	}
	if s.Linux.Namespaces, err = podNamespaces(in); err != nil {
		return nil, spec.PodUser{}, err
	}
	if in.Idmap != nil {
		s.Linux.UIDMappings, s.Linux.GIDMappings = in.Idmap.UIDs, in.Idmap.GIDs
	}
	if s.Process, err = podProcess(in, root); err != nil {
		return nil, spec.PodUser{}, err
	}
	if err := addPodMounts(s, in); err != nil {
		return nil, spec.PodUser{}, err
	}
	if s.Linux.Resources, err = LinuxResources(c.Resources, in.Host); err != nil {
		return nil, spec.PodUser{}, err
	}
	if err := addPodDevices(s, in); err != nil {
		return nil, spec.PodUser{}, err
	}
	if err := addConfinement(ctx, s, in); err != nil {
		return nil, spec.PodUser{}, err
	}
	s.Version = LowestVersion(s)
	return s, podUser(s.Process.User), workDir(root, s, in.Idmap)
}

// Annotations of the container that are also in its spec, for hooks and for
// runtimes such as Kata's.
const (
	annotationKind      = "io.kubernetes.cri.container-type"
	annotationSandbox   = "io.kubernetes.cri.sandbox-id"
	annotationContainer = "io.kubernetes.cri.container-name"
	annotationImage     = "io.kubernetes.cri.image-name"
	annotationPodName   = "io.kubernetes.cri.sandbox-name"
	annotationPodSpace  = "io.kubernetes.cri.sandbox-namespace"
	annotationPodUID    = "io.kubernetes.cri.sandbox-uid"
)

// kubernetesPrefix is of annotations that mean nothing to a runtime.
const kubernetesPrefix = "io.kubernetes."

// podAnnotations are those that runtimes of virtual machines and hooks know a
// container of Kubernetes by, kubelet's own, and those of the container and its
// pod that may be in a spec.
func podAnnotations(in PodInput) map[string]string {
	all := map[string]string{}
	for name, value := range in.Pod.Config.Annotations {
		if allowed(in.Annotations, name) {
			all[name] = value
		}
	}
	for name, value := range in.Container.Config.Annotations {
		if strings.HasPrefix(name, kubernetesPrefix) || allowed(in.Annotations, name) {
			all[name] = value
		}
	}
	maps.Copy(all, sandboxAnnotations(in.Pod, "container"))
	all[annotationContainer] = in.Container.Config.Name
	all[annotationImage] = firstOf(in.Container.Config.UserImage, in.Container.Config.Image)
	return all
}

func allowed(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		matches, err := path.Match(pattern, name)
		return matches && err == nil
	})
}

func sandboxAnnotations(p spec.Pod, kind string) map[string]string {
	return map[string]string{
		annotationKind: kind, annotationSandbox: p.ID,
		annotationPodName: p.Config.Name, annotationPodSpace: p.Config.Namespace, annotationPodUID: p.Config.UID,
	}
}

// checkPod refuses what contradicts the pod.
func checkPod(in PodInput) error {
	pod, own := in.Pod.Config.Security, in.Container.Config.Security
	switch {
	case own.Privileged && !pod.Privileged:
		return errs.New(errs.Invalid, "a privileged container needs a pod that is privileged")
	case own.Group != nil && own.User == nil && own.UserName == "":
		return errs.New(errs.Invalid, "group %d: a group needs a user", *own.Group)
	case in.CgroupPath == "":
		return errs.New(errs.Internal, "container %s has no cgroup", in.Container.ID)
	}
	return sameUserNamespace(pod.Namespaces.User, own.Namespaces.User)
}

// sameUserNamespace: where a container says anything about it, it is what its
// pod has.
func sameUserNamespace(pod, own *spec.PodUserNamespace) error {
	if own == nil {
		return nil
	}
	inPod := pod != nil && pod.Mode == spec.NamespacePod
	inOwn := own.Mode == spec.NamespacePod
	if inPod != inOwn || inPod && (!slices.Equal(pod.UIDs, own.UIDs) || !slices.Equal(pod.GIDs, own.GIDs)) {
		return errs.New(errs.Invalid, "the container's user namespace is not that of its pod")
	}
	return nil
}

// PodIdmap checks what is asked of a pod's user namespace; nil is the host's.
// Exactly one range of users and the same one of groups can be mapped, and it
// begins with root.
func PodIdmap(ns *spec.PodUserNamespace) (*Idmap, error) {
	switch {
	case ns == nil, ns.Mode == spec.NamespaceNode && len(ns.UIDs) == 0 && len(ns.GIDs) == 0:
		return nil, nil
	case ns.Mode == spec.NamespaceNode:
		return nil, errs.New(errs.Invalid, "user namespace of the node: nothing can be mapped")
	case ns.Mode != spec.NamespacePod:
		return nil, errs.New(errs.Invalid, "user namespace: mode %s is not possible, only pod and node", ns.Mode)
	case len(ns.UIDs) != 1 || len(ns.GIDs) != 1:
		return nil, errs.New(errs.Invalid, "user namespace: one mapping of users and one of groups is possible, not %d and %d", len(ns.UIDs), len(ns.GIDs))
	case ns.UIDs[0] != ns.GIDs[0]:
		return nil, errs.New(errs.Invalid, "user namespace: the mappings of users and of groups differ")
	case ns.UIDs[0].Container != 0:
		return nil, errs.New(errs.Invalid, "user namespace: id 0 is not mapped")
	case ns.UIDs[0].Length == 0:
		return nil, errs.New(errs.Invalid, "user namespace: the mapping is empty")
	}
	return &Idmap{UIDs: mappings(ns.UIDs), GIDs: mappings(ns.GIDs)}, nil
}

func mappings(list []spec.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.Container, HostID: m.Host, Size: m.Length})
	}
	return out
}

// podNamespaces: those of the pod are joined. A namespace of the host is one
// left out.
func podNamespaces(in PodInput) ([]specs.LinuxNamespace, error) {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, path string) {
		if path != "" {
			list = append(list, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	if in.Pod.NetNS == "" && in.Pod.Config.Security.Namespaces.Network == spec.NamespacePod {
		return nil, errs.New(errs.Internal, "pod %s has no network namespace, and is not to be in the host's", in.Pod.ID)
	}
	join(specs.NetworkNamespace, in.Pod.NetNS)
	join(specs.IPCNamespace, in.Pod.IPCNS)
	join(specs.UTSNamespace, in.Pod.UTSNS)
	switch mode := in.Container.Config.Security.Namespaces.PID; mode {
	case spec.NamespaceNode:
	case spec.NamespaceContainer:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case spec.NamespacePod, spec.NamespaceTarget:
		if in.PIDNS == "" {
			return nil, errs.New(errs.Internal, "container %s joins a PID namespace (%s) that is not there", in.Container.ID, mode)
		}
		join(specs.PIDNamespace, in.PIDNS)
	default:
		return nil, errs.New(errs.Invalid, "PID namespace: unknown mode %q", mode)
	}
	if in.Idmap != nil {
		if in.Pod.UserNS == "" {
			return nil, errs.New(errs.Internal, "pod %s has no user namespace", in.Pod.ID)
		}
		join(specs.UserNamespace, in.Pod.UserNS)
	}
	// On version 1, and to the privileged, the tree of the host is shown, as
	// Kubernetes has it.
	if in.Host.Cgroup == 2 && !in.Container.Config.Security.Privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list, nil
}

// LowestVersion is the lowest version of OCI that carries the spec.
func LowestVersion(s *specs.Spec) string {
	if sec := s.Linux.Seccomp; sec != nil && (sec.ListenerPath != "" || sec.ListenerMetadata != "") {
		return "1.1.0"
	}
	return "1.0.2"
}

// podProcess is the container's first process.
func podProcess(in PodInput, r root) (*specs.Process, error) {
	c := in.Container.Config
	args, err := podArgs(c, in.Image)
	if err != nil {
		return nil, err
	}
	u, home, err := podAccount(r, c.Security, in.Image.User)
	if err != nil {
		return nil, err
	}
	caps, err := podCapabilities(c.Security, in.Host)
	if err != nil {
		return nil, err
	}
	score := oomScore(int(c.Resources.OOMScoreAdj), in.Host)
	return &specs.Process{
		Terminal:        c.TTY,
		User:            u,
		Args:            args,
		Env:             withHome(podEnv(in), home),
		Cwd:             path.Join("/", firstOf(c.WorkDir, in.Image.WorkDir)),
		Capabilities:    caps,
		NoNewPrivileges: c.Security.NoNewPrivileges,
		OOMScoreAdj:     &score,
	}, nil
}

// podArgs is what the container runs. A command of its own drops both the
// image's entrypoint and its command.
func podArgs(c spec.PodContainerConfig, image spec.ImageConfig) ([]string, error) {
	command, args := c.Command, c.Args
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Command
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" {
		return nil, errs.New(errs.Invalid, "no command: neither the container nor its image names one")
	}
	return all, nil
}

func podEnv(in PodInput) []string {
	list := []string{defaultPath, "HOSTNAME=" + firstOf(in.Pod.Config.Hostname, in.Host.Hostname)}
	if in.Container.Config.TTY {
		list = append(list, "TERM=xterm")
	}
	return setEnv(list, in.Image.Env, in.Container.Config.Env)
}

// setEnv sets variables; what is no assignment is left out. Kubernetes tells
// of each service by seven of them, so there may be very many.
func setEnv(list []string, with ...[]string) []string {
	at := map[string]int{}
	out := make([]string, 0, len(list))
	for _, v := range slices.Concat(append([][]string{list}, with...)...) {
		name, _, set := strings.Cut(v, "=")
		if !set || name == "" {
			continue
		}
		if i, had := at[name]; had {
			out[i] = v
			continue
		}
		at[name] = len(out)
		out = append(out, v)
	}
	return out
}
