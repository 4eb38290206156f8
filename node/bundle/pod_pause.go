package bundle

import (
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// Pause is what the spec of a pod's hidden container is made of: a process
// that holds the PID namespace and reaps, and does nothing else.
type Pause struct {
	Pod  spec.Pod
	Host Host
	// Program is a static program on the host; it runs with Args after its name.
	Program string
	Args    []string
	// Rootfs is an empty folder of the caller's, in which the points to mount
	// on are made.
	Rootfs     string
	CgroupPath string
	Idmap      *Idmap
}

// pauseTarget is where the program is in there.
const pauseTarget = "/pause"

// PauseSpec makes it: no rights, no device, nothing to write to, and the
// kernel's default profiles where pods have them.
func PauseSpec(in Pause) (*specs.Spec, error) {
	if in.CgroupPath == "" {
		return nil, errs.New(errs.Internal, "the pause process of pod %s has no cgroup", in.Pod.ID)
	}
	list, err := podNamespaces(PodInput{
		Pod: in.Pod, Idmap: in.Idmap, Host: in.Host,
		Container: spec.PodContainer{Config: spec.PodContainerConfig{Security: spec.PodSecurity{Namespaces: spec.PodNamespaces{PID: spec.NamespaceContainer}}}},
	})
	if err != nil {
		return nil, err
	}
	if err := pauseRoot(in.Rootfs); err != nil {
		return nil, fmt.Errorf("root of the pause process: %w", err)
	}
	score := oomScore(-998, in.Host)
	shares := uint64(2)
	s := &specs.Spec{
		Version:     "1.0.2",
		Root:        &specs.Root{Path: in.Rootfs, Readonly: true},
		Annotations: sandboxAnnotations(in.Pod, "sandbox"),
		Process: &specs.Process{
			Args: append([]string{pauseTarget}, in.Args...), Env: []string{defaultPath}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true, OOMScoreAdj: &score, SelinuxLabel: in.Pod.ProcessLabel,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{Destination: pauseTarget, Type: "bind", Source: in.Program, Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: in.CgroupPath, Namespaces: list, MountLabel: in.Pod.MountLabel,
			MaskedPaths: maskedPaths(), ReadonlyPaths: readonlyPaths(),
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				CPU:     &specs.LinuxCPU{Shares: &shares},
			},
		},
	}
	if in.Idmap != nil {
		s.Linux.UIDMappings, s.Linux.GIDMappings = in.Idmap.UIDs, in.Idmap.GIDs
	}
	s.Version = LowestVersion(s)
	return s, nil
}

// pauseRoot makes what is mounted on: in a user namespace the runtime may not.
// crun has to read the folder there.
func pauseRoot(dir string) error {
	for _, name := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // there is nothing to hide in it
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, pauseTarget), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	return f.Close()
}
