// Package bundle writes the OCI bundle of a container: what was asked of it
// and what its image says, as the config.json that any OCI runtime runs.
//
// What a container gets is what docker gives it, clamped to what this node
// has itself: Host, found out once by Detect. A spec names the lowest OCI
// version that carries it.
package bundle

import (
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

// Host is what this node has to give. Detect finds it out.
type Host struct{}

// Detect looks at this machine and at the rights of this process.
func Detect() (Host, error) { return Host{}, errs.Unsupported }

// Spec makes the spec. What was asked and can never be is errs.Invalid, and
// names it; what this machine cannot is errs.Unsupported.
func Spec(in Input) (*specs.Spec, error) { return nil, errs.Unsupported }

// Write puts the spec into the bundle at dir, as config.json.
func Write(dir string, s *specs.Spec) error { return errs.Unsupported }

// Args is what a container runs: its own entrypoint and command where it has
// them, else the image's. An entrypoint of its own drops the image's command.
// None at all is errs.Invalid.
func Args(c spec.ContainerConfig, image spec.ImageConfig) ([]string, error) {
	return nil, errs.Unsupported
}

// CgroupPath is where a container's cgroup lies in every hierarchy; parent is
// spec.ContainerConfig.CgroupParent.
func CgroupPath(parent, id string) string { return "" }

// Resources are limits as runtimes take them, for a spec and for an update.
func Resources(r spec.Resources, host Host) (*specs.LinuxResources, error) {
	return nil, errs.Unsupported
}

// ExecInput is what a further process of a container is made of.
type ExecInput struct {
	Container spec.Container
	Image     spec.ImageConfig
	Host      Host
	Rootfs    string
	Config    spec.ExecConfig
}

// Exec makes the process of an exec.
func Exec(in ExecInput) (*specs.Process, error) { return nil, errs.Unsupported }

// BorrowShm mounts the /dev/shm of the container of which pid is a process
// at target, an empty folder. The caller unmounts it.
func BorrowShm(pid int, target string) error { return errs.Unsupported }

// UserIDs finds the ids behind "name", "uid", "name:group", … in a root file system.
func UserIDs(rootfs, user string) (uid, gid uint32, err error) { return 0, 0, errs.Unsupported }
