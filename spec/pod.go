package spec

import "time"

// PodConfig is what a client asks of a pod: containers that share namespaces,
// a network and a fate, as Kubernetes means it.
type PodConfig struct {
	// Namespace, Name, UID and Attempt together are unique; the node makes the id.
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt"`

	Hostname     string            `json:"hostname,omitempty"`
	LogDir       string            `json:"logDir,omitempty" doc:"folder that the containers' log paths are relative to"`
	DNS          *PodDNS           `json:"dns,omitempty" doc:"the node's own where there is none"`
	Ports        []PodPort         `json:"ports,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Handler      string            `json:"handler,omitempty" doc:"name of the runtime; empty for the node's usual"`
	CgroupParent string            `json:"cgroupParent,omitempty"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	// Overhead and Resources are what the pod as a whole has. Whoever made
	// CgroupParent enforces them; runtimes of virtual machines need to know.
	Overhead  *PodResources `json:"overhead,omitempty"`
	Resources *PodResources `json:"resources,omitempty"`
	Security  PodSecurity   `json:"security"`
}

// PodDNS is what the containers' resolv.conf says.
type PodDNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// PodPort leads from the host to a port of the pod. HostPort 0 publishes nothing.
type PodPort struct {
	HostIP        string `json:"hostIP,omitempty"`
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol" enum:"tcp,udp,sctp"`
}

// NamespaceMode says whose kernel namespace a container has.
type NamespaceMode string

// The modes of namespaces.
const (
	NamespacePod       NamespaceMode = "pod"       // one for all containers of the pod
	NamespaceContainer NamespaceMode = "container" // its own
	NamespaceNode      NamespaceMode = "node"      // the host's
	NamespaceTarget    NamespaceMode = "target"    // that of another container of the pod
)

// PodNamespaces are the kernel namespaces of a pod or of one of its containers.
type PodNamespaces struct {
	Network NamespaceMode     `json:"network"`
	PID     NamespaceMode     `json:"pid"`
	IPC     NamespaceMode     `json:"ipc"`
	Target  string            `json:"target,omitempty" doc:"id of the container whose processes are seen"`
	User    *PodUserNamespace `json:"user,omitempty" doc:"the host's where there is none"`
}

// PodUserNamespace maps the ids of a pod to those of the host.
type PodUserNamespace struct {
	Mode NamespaceMode `json:"mode" enum:"pod,node"`
	UIDs []IDMapping   `json:"uids,omitempty"`
	GIDs []IDMapping   `json:"gids,omitempty"`
}

// IDMapping maps Length ids from Container on to those from Host on.
type IDMapping struct {
	Container uint32 `json:"container"`
	Host      uint32 `json:"host"`
	Length    uint32 `json:"length"`
}

// PodSecurity is what the processes of a pod, or of one container, may do.
type PodSecurity struct {
	Namespaces PodNamespaces `json:"namespaces"`

	User     *int64  `json:"user,omitempty" doc:"the image's where there is none"`
	UserName string  `json:"userName,omitempty"`
	Group    *int64  `json:"group,omitempty"`
	Groups   []int64 `json:"groups,omitempty" doc:"supplementary"`
	// StrictGroups: only Groups, not those that the image's /etc/group adds.
	StrictGroups bool `json:"strictGroups,omitempty"`

	Privileged      bool             `json:"privileged,omitempty"`
	ReadOnlyRoot    bool             `json:"readOnlyRoot,omitempty"`
	NoNewPrivileges bool             `json:"noNewPrivileges,omitempty"`
	Capabilities    *PodCapabilities `json:"capabilities,omitempty"`
	SELinux         *SELinuxLabel    `json:"selinux,omitempty"`
	Seccomp         *SecurityProfile `json:"seccomp,omitempty"`
	AppArmor        *SecurityProfile `json:"apparmor,omitempty"`
	MaskedPaths     []string         `json:"maskedPaths,omitempty"`
	ReadOnlyPaths   []string         `json:"readOnlyPaths,omitempty"`
}

// PodCapabilities change the usual set; names without CAP_, or ALL.
type PodCapabilities struct {
	Add     []string `json:"add,omitempty"`
	Drop    []string `json:"drop,omitempty"`
	Ambient []string `json:"ambient,omitempty"`
}

// SELinuxLabel is the parts of a process label; empty ones are the policy's.
type SELinuxLabel struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

// SecurityProfile is a profile of seccomp or of AppArmor.
type SecurityProfile struct {
	Type      string `json:"type" enum:"default,unconfined,localhost"`
	Localhost string `json:"localhost,omitempty" doc:"seccomp: path of a file; AppArmor: name of a loaded profile"`
}

// The types of security profiles.
const (
	ProfileDefault    = "default"
	ProfileUnconfined = "unconfined"
	ProfileLocalhost  = "localhost"
)

// PodResources are limits. 0 and "" leave a limit as it is.
type PodResources struct {
	CPUPeriod   int64             `json:"cpuPeriod,omitempty" doc:"microseconds"`
	CPUQuota    int64             `json:"cpuQuota,omitempty" doc:"microseconds per period"`
	CPUShares   int64             `json:"cpuShares,omitempty"`
	CPUs        string            `json:"cpus,omitempty" doc:"processors, as in 0-3,7"`
	Mems        string            `json:"mems,omitempty" doc:"memory nodes"`
	Memory      int64             `json:"memory,omitempty" doc:"bytes"`
	MemorySwap  int64             `json:"memorySwap,omitempty" doc:"bytes of memory and swap together; -1 for no limit"`
	OOMScoreAdj int64             `json:"oomScoreAdj,omitempty"`
	HugePages   map[string]uint64 `json:"hugePages,omitempty" doc:"size such as 2MB to bytes"`
	Unified     map[string]string `json:"unified,omitempty" doc:"files of cgroup version 2"`
}

// PodState says whether containers can run in a pod.
type PodState string

// The states of pods.
const (
	PodReady    PodState = "ready"
	PodNotReady PodState = "notready"
)

// Pod is a pod as it is now.
type Pod struct {
	ID      string    `json:"id"`
	Config  PodConfig `json:"config"`
	State   PodState  `json:"state"`
	Created time.Time `json:"created"`
	IPs     []string  `json:"ips,omitempty" doc:"none on the host's network; the first is what Kubernetes shows"`
	Runtime string    `json:"runtime" doc:"name of the runtime that runs its containers"`
	// NetNS, IPCNS, UTSNS, PIDNS and UserNS are paths of its kernel namespaces;
	// "" where it has none of its own.
	NetNS  string `json:"netns,omitempty"`
	IPCNS  string `json:"ipcns,omitempty"`
	UTSNS  string `json:"utsns,omitempty"`
	PIDNS  string `json:"pidns,omitempty"`
	UserNS string `json:"userns,omitempty"`
	// ProcessLabel and MountLabel are for SELinux; "" where it is off.
	ProcessLabel string `json:"processLabel,omitempty"`
	MountLabel   string `json:"mountLabel,omitempty"`
	// Networks are the interfaces in NetNS besides lo.
	Networks []PodInterface `json:"networks,omitempty"`
}

// PodInterface is a network interface of a pod.
type PodInterface struct {
	Name string   `json:"name"`
	MAC  string   `json:"mac,omitempty"`
	IPs  []string `json:"ips,omitempty"`
}

// PodContainerConfig is what a client asks of a container in a pod.
type PodContainerConfig struct {
	Name    string `json:"name"` // with Attempt unique in the pod
	Attempt uint32 `json:"attempt"`

	Image       string            `json:"image" doc:"as the client names it: an id, a digest or a name"`
	UserImage   string            `json:"userImage,omitempty" doc:"as its user named it"`
	Command     []string          `json:"command,omitempty" doc:"instead of the image's entrypoint"`
	Args        []string          `json:"args,omitempty" doc:"instead of the image's command"`
	WorkDir     string            `json:"workDir,omitempty"`
	Env         []string          `json:"env,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	LogPath     string            `json:"logPath,omitempty" doc:"relative to the pod's LogDir; none: no log"`
	Mounts      []PodMount        `json:"mounts,omitempty"`
	Devices     []PodDevice       `json:"devices,omitempty"`
	CDI         []string          `json:"cdi,omitempty" doc:"devices by vendor.com/class=name"`
	Stdin       bool              `json:"stdin,omitempty"`
	StdinOnce   bool              `json:"stdinOnce,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	StopSignal  string            `json:"stopSignal,omitempty" doc:"SIGTERM; empty for the image's"`
	Resources   PodResources      `json:"resources"`
	Security    PodSecurity       `json:"security"`
}

// PodMount is a part of the host, or of an image, that a container sees.
type PodMount struct {
	Target            string           `json:"target"`
	Source            string           `json:"source,omitempty" doc:"on the host"`
	Image             string           `json:"image,omitempty" doc:"id, digest or name of an image instead of Source; always read-only"`
	ImageSubPath      string           `json:"imageSubPath,omitempty"`
	ReadOnly          bool             `json:"readOnly,omitempty"`
	RecursiveReadOnly bool             `json:"recursiveReadOnly,omitempty"`
	Relabel           bool             `json:"relabel,omitempty" doc:"for SELinux"`
	Propagation       MountPropagation `json:"propagation,omitempty"`
	UIDs              []IDMapping      `json:"uids,omitempty" doc:"owners shifted on this mount"`
	GIDs              []IDMapping      `json:"gids,omitempty"`
	Options           []string         `json:"options,omitempty" doc:"noexec, nodev, nosuid"`
}

// MountPropagation says which later mounts are seen on the other side.
type MountPropagation string

// The propagations of mounts; "" is PropagationPrivate.
const (
	PropagationPrivate         MountPropagation = "private"
	PropagationHostToContainer MountPropagation = "hostToContainer"
	PropagationBidirectional   MountPropagation = "bidirectional"
)

// PodDevice is a device of the host that a container sees.
type PodDevice struct {
	Host        string `json:"host"`
	Container   string `json:"container"`
	Permissions string `json:"permissions" doc:"of r, w, m"`
}

// PodContainer is a container of a pod as it is now.
type PodContainer struct {
	ID     string             `json:"id"`
	Pod    string             `json:"pod" doc:"id"`
	Config PodContainerConfig `json:"config"`

	ImageID  string `json:"imageID" doc:"digest of the image's configuration"`
	ImageRef string `json:"imageRef" doc:"name@digest, or ImageID where it has none"`

	State    State     `json:"state" enum:"created,running,paused,exited,dead"`
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	ExitCode int       `json:"exitCode"`
	Reason   string    `json:"reason,omitempty" doc:"Completed, Error, OOMKilled, StartError, ContainerStatusUnknown, …"`
	Message  string    `json:"message,omitempty"`

	Pid        int          `json:"pid,omitempty"`
	LogPath    string       `json:"logPath,omitempty" doc:"absolute"`
	StopSignal string       `json:"stopSignal,omitempty"`
	User       *PodUser     `json:"user,omitempty" doc:"of its first process"`
	Mounts     []PodMount   `json:"mounts,omitempty" doc:"with Image as the ID of an image"`
	Resources  PodResources `json:"resources" doc:"as they are now"`
	Cgroup     string       `json:"cgroup,omitempty" doc:"in every hierarchy"`
}

// PodUser is who a process is, within its user namespace.
type PodUser struct {
	UID    int64   `json:"uid"`
	GID    int64   `json:"gid"`
	Groups []int64 `json:"groups,omitempty"`
}

// PodTraceStep is one step of what was done for a pod, in the order of their
// beginnings. Steps nest by Depth.
type PodTraceStep struct {
	Call     string        `json:"call" doc:"run pod, create container web, start container web, stop pod, …"`
	Step     string        `json:"step"`
	Depth    int           `json:"depth"`
	Started  time.Time     `json:"started"`
	Duration time.Duration `json:"duration" doc:"nanoseconds"`
	Error    string        `json:"error,omitempty"`
}
