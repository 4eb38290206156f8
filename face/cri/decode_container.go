package cri

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/spec"
)

// containerConfig reads what a client asks of a container.
func containerConfig(c *cri.ContainerConfig) (config spec.PodContainerConfig, err error) {
	if c.GetMetadata().GetName() == "" {
		return config, errs.New(errs.Invalid, "a container needs metadata: a name")
	}
	if c.GetImage().GetImage() == "" {
		return config, errs.New(errs.Invalid, "container %s: of which image", c.GetMetadata().GetName())
	}
	if path := c.GetLogPath(); path != "" && !filepath.IsLocal(path) && !filepath.IsAbs(path) {
		return config, errs.New(errs.Invalid, "log path %q leads out of the pod's folder of logs", path)
	}
	if err := whole(slices.Concat([]string{c.GetMetadata().GetName(), c.GetWorkingDir(), c.GetLogPath()}, c.GetCommand(), c.GetArgs())...); err != nil {
		return config, err
	}
	config = spec.PodContainerConfig{
		Name: c.GetMetadata().GetName(), Attempt: c.GetMetadata().GetAttempt(),
		Image: c.GetImage().GetImage(), UserImage: c.GetImage().GetUserSpecifiedImage(),
		Command: slices.Clone(c.GetCommand()), Args: slices.Clone(c.GetArgs()), WorkDir: c.GetWorkingDir(),
		Labels: maps.Clone(c.GetLabels()), Annotations: maps.Clone(c.GetAnnotations()), LogPath: c.GetLogPath(),
		Stdin: c.GetStdin(), StdinOnce: c.GetStdinOnce(), TTY: c.GetTty(),
		Resources: resources(c.GetLinux().GetResources()),
	}
	for _, e := range c.GetEnvs() {
		if e.GetKey() == "" || strings.Contains(e.GetKey(), "=") {
			return config, errs.New(errs.Invalid, "%q is no name of an environment variable", e.GetKey())
		}
		if err := whole(e.GetKey(), string(e.GetValue())); err != nil {
			return config, err
		}
		config.Env = append(config.Env, e.GetKey()+"="+string(e.GetValue()))
	}
	for _, d := range c.GetDevices() {
		if err := whole(d.GetHostPath(), d.GetContainerPath(), d.GetPermissions()); err != nil {
			return config, err
		}
		config.Devices = append(config.Devices, spec.PodDevice{Host: d.GetHostPath(), Container: d.GetContainerPath(), Permissions: d.GetPermissions()})
	}
	for _, d := range c.GetCDIDevices() {
		config.CDI = append(config.CDI, d.GetName())
	}
	for _, m := range c.GetMounts() {
		read, err := mount(m)
		if err != nil {
			return config, err
		}
		config.Mounts = append(config.Mounts, read)
	}
	if config.StopSignal, err = signal(c.GetStopSignal()); err != nil {
		return config, err
	}
	config.Security, err = containerSecurity(c.GetLinux().GetSecurityContext())
	return config, err
}

// whole says whether the kernel takes texts to their end: at a NUL it stops.
func whole(texts ...string) error {
	for _, text := range texts {
		if strings.ContainsRune(text, 0) {
			return errs.New(errs.Invalid, "there is a NUL in %.100q", text)
		}
	}
	return nil
}

// mountOptions are those that a client may give a mount.
var mountOptions = []string{"noexec", "nodev", "nosuid"}

// propagations are those of mounts, in both directions.
var propagations = map[cri.MountPropagation]spec.MountPropagation{
	cri.MountPropagation_PROPAGATION_PRIVATE:           spec.PropagationPrivate,
	cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: spec.PropagationHostToContainer,
	cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:     spec.PropagationBidirectional,
}

func mount(m *cri.Mount) (spec.PodMount, error) {
	read := spec.PodMount{
		Target: m.GetContainerPath(), Source: m.GetHostPath(), Image: m.GetImage().GetImage(), ImageSubPath: m.GetImageSubPath(),
		ReadOnly: m.GetReadonly(), RecursiveReadOnly: m.GetRecursiveReadOnly(), Relabel: m.GetSelinuxRelabel(),
		Propagation: propagations[m.GetPropagation()], UIDs: mappings(m.GetUidMappings()), GIDs: mappings(m.GetGidMappings()),
		Options: slices.Clone(m.GetMountOptions()),
	}
	invalid := func(why string) (spec.PodMount, error) {
		return read, errs.New(errs.Invalid, "mount at %s: %s", read.Target, why)
	}
	if err := whole(read.Target, read.Source, read.ImageSubPath); err != nil {
		return read, err
	}
	switch {
	case read.Target == "":
		return invalid("container_path is empty")
	case read.Propagation == "":
		return invalid("there is no such propagation")
	case m.GetImage() != nil && read.Source != "":
		return invalid("it is either a path of the host or an image")
	case m.GetImage() != nil && read.Image == "":
		return invalid("the name of the image is empty")
	case m.GetImage() == nil && read.Source == "":
		return invalid("neither a path of the host nor an image")
	case m.GetImage() != nil && !read.ReadOnly:
		return invalid("images are read-only, and it is to be writable: readonly is not set")
	case read.ImageSubPath != "" && m.GetImage() == nil:
		return invalid("image_sub_path is of images only")
	case read.RecursiveReadOnly && !read.ReadOnly:
		return invalid("recursive_read_only needs readonly")
	case read.RecursiveReadOnly && read.Propagation != spec.PropagationPrivate:
		return invalid("recursive_read_only needs private propagation")
	}
	for _, option := range read.Options {
		if !slices.Contains(mountOptions, option) {
			return invalid("option " + option + ": want " + strings.Join(mountOptions, ", "))
		}
	}
	return read, nil
}

func containerSecurity(c *cri.LinuxContainerSecurityContext) (s spec.PodSecurity, err error) {
	s = spec.PodSecurity{
		User: number(c.GetRunAsUser()), UserName: c.GetRunAsUsername(), Group: number(c.GetRunAsGroup()),
		Groups:       slices.Clone(c.GetSupplementalGroups()),
		StrictGroups: c.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Strict,
		Privileged:   c.GetPrivileged(), ReadOnlyRoot: c.GetReadonlyRootfs(), NoNewPrivileges: c.GetNoNewPrivs(),
		SELinux: selinux(c.GetSelinuxOptions()), MaskedPaths: slices.Clone(c.GetMaskedPaths()), ReadOnlyPaths: slices.Clone(c.GetReadonlyPaths()),
	}
	if s.Group != nil && s.User == nil && s.UserName == "" {
		return s, errs.New(errs.Invalid, "run_as_group without run_as_user")
	}
	if caps := c.GetCapabilities(); caps != nil {
		s.Capabilities = &spec.PodCapabilities{
			Add: slices.Clone(caps.GetAddCapabilities()), Drop: slices.Clone(caps.GetDropCapabilities()), Ambient: slices.Clone(caps.GetAddAmbientCapabilities()),
		}
	}
	if s.Namespaces, err = namespaces(c.GetNamespaceOptions()); err != nil {
		return s, err
	}
	if s.Seccomp, err = profile("seccomp", c.GetSeccomp(), c.GetSeccompProfilePath()); err != nil { //nolint:staticcheck // older clients still send it
		return s, err
	}
	s.AppArmor, err = profile("apparmor", c.GetApparmor(), c.GetApparmorProfile()) //nolint:staticcheck // as above
	return s, err
}

// signal is the name of a signal; "" for what the image says.
func signal(number cri.Signal) (string, error) {
	if number == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		return "", nil
	}
	name, known := cri.Signal_name[int32(number)]
	if !known {
		return "", errs.New(errs.Invalid, "stop_signal: there is no signal %d", number)
	}
	name = strings.TrimPrefix(name, "SIGNAL_")
	name = strings.Replace(name, "PLUS", "+", 1)
	return strings.Replace(name, "MINUS", "-", 1), nil
}

// signalShown is a signal by its name, with or without SIG. Where neither the
// client nor the image says one it is that which everybody gets.
func signalShown(name string) cri.Signal {
	if name == "" {
		return cri.Signal_SIGNAL_SIGTERM
	}
	name = "SIGNAL_SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	name = strings.Replace(name, "+", "PLUS", 1)
	name = strings.Replace(name, "-", "MINUS", 1)
	return cri.Signal(cri.Signal_value[name])
}
