package spec

import "time"

// ContainerConfig is what a user asks of a container. It is fixed at create,
// but for Name, Resources and Restart, which update may change.
//
// A nil Command, Entrypoint or Health means "as the image says"; an empty one
// that is not nil means "none, whatever the image says".
type ContainerConfig struct {
	Name       string            `json:"name,omitempty" doc:"unique on the node; made up when empty"`
	Image      string            `json:"image" doc:"reference, as in docker run"`
	Platform   string            `json:"platform,omitempty" doc:"os/arch[/variant] to choose from an index"`
	Entrypoint []string          `json:"entrypoint,omitzero"`
	Command    []string          `json:"command,omitzero"`
	Env        []string          `json:"env,omitempty" doc:"KEY=value; added to the image's"`
	WorkDir    string            `json:"workDir,omitempty"`
	User       string            `json:"user,omitempty" doc:"name or id, optionally :group"`
	Groups     []string          `json:"groups,omitempty" doc:"supplementary groups, names or ids"`
	Hostname   string            `json:"hostname,omitempty"`
	Domainname string            `json:"domainname,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	// Annotations go into the OCI spec and are given back byte for byte.
	Annotations map[string]string `json:"annotations,omitempty"`

	TTY       bool `json:"tty,omitempty"`
	OpenStdin bool `json:"openStdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty" doc:"close stdin when the first attached client goes away"`

	StopSignal  string        `json:"stopSignal,omitempty"`
	StopTimeout *int          `json:"stopTimeout,omitempty" doc:"seconds between the stop signal and the kill; 10 when absent"`
	Restart     RestartPolicy `json:"restart,omitzero"`
	AutoRemove  bool          `json:"autoRemove,omitempty"`
	Init        bool          `json:"init,omitempty" doc:"run a small init as process 1 that forwards signals and reaps"`
	Runtime     string        `json:"runtime,omitempty" doc:"runc, crun, or a runtime the node's configuration names"`
	Health      *HealthConfig `json:"health,omitempty"`
	Log         LogConfig     `json:"log,omitzero"`

	Security  Security     `json:"security,omitzero"`
	Resources Resources    `json:"resources,omitzero"`
	Rlimits   []Rlimit     `json:"rlimits,omitempty"`
	Devices   []Device     `json:"devices,omitempty"`
	Mounts    []MountPoint `json:"mounts,omitempty"`
	ShmSize   int64        `json:"shmSize,omitempty" doc:"bytes of /dev/shm; 64 MiB when 0"`

	Network      NetworkChoice     `json:"network,omitzero"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	PIDMode      string            `json:"pidMode,omitempty" doc:"\"\", host, or container:<id>"`
	IPCMode      string            `json:"ipcMode,omitempty" doc:"\"\", host, or container:<id>"`
	UTSMode      string            `json:"utsMode,omitempty" doc:"\"\" or host"`
	CgroupMode   string            `json:"cgroupMode,omitempty" doc:"private or host; private where the machine runs cgroup v2"`
	CgroupParent string            `json:"cgroupParent,omitempty"`
	OOMScoreAdj  int               `json:"oomScoreAdj,omitempty"`
}

// Security says what a container may do.
type Security struct {
	Privileged      bool     `json:"privileged,omitempty"`
	CapAdd          []string `json:"capAdd,omitempty" doc:"NET_ADMIN or CAP_NET_ADMIN; ALL"`
	CapDrop         []string `json:"capDrop,omitempty"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	ReadOnlyRoot    bool     `json:"readOnlyRoot,omitempty"`
	Seccomp         string   `json:"seccomp,omitempty" doc:"\"\" for the default profile, unconfined, or a profile's JSON"`
	Unmasked        bool     `json:"unmasked,omitempty" doc:"no masked and no read-only paths under /proc and /sys"`
	Userns          string   `json:"userns,omitempty" doc:"\"\" as the node is set, host, or auto (remapped)"`
}

// Resources are the limits of a container. Zero means no limit.
type Resources struct {
	Memory            int64            `json:"memory,omitempty" doc:"bytes"`
	MemoryReservation int64            `json:"memoryReservation,omitempty" doc:"bytes"`
	MemorySwap        int64            `json:"memorySwap,omitempty" doc:"bytes of memory and swap together; -1 for no limit"`
	OOMKillDisable    bool             `json:"oomKillDisable,omitempty"`
	NanoCPUs          int64            `json:"nanoCPUs,omitempty" doc:"billionths of a CPU"`
	CPUShares         int64            `json:"cpuShares,omitempty"`
	CPUPeriod         int64            `json:"cpuPeriod,omitempty" doc:"microseconds"`
	CPUQuota          int64            `json:"cpuQuota,omitempty" doc:"microseconds in each period"`
	CpusetCPUs        string           `json:"cpusetCPUs,omitempty"`
	CpusetMems        string           `json:"cpusetMems,omitempty"`
	Pids              int64            `json:"pids,omitempty" doc:"-1 for no limit"`
	BlkioWeight       uint16           `json:"blkioWeight,omitempty" doc:"10 to 1000"`
	DeviceReadBps     []DeviceThrottle `json:"deviceReadBps,omitempty"`
	DeviceWriteBps    []DeviceThrottle `json:"deviceWriteBps,omitempty"`
	DeviceReadIOps    []DeviceThrottle `json:"deviceReadIOps,omitempty"`
	DeviceWriteIOps   []DeviceThrottle `json:"deviceWriteIOps,omitempty"`
}

// DeviceThrottle bounds the traffic to one block device.
type DeviceThrottle struct {
	Path string `json:"path"`
	Rate uint64 `json:"rate" doc:"bytes or operations a second"`
}

// Rlimit is one resource limit of the container's processes.
type Rlimit struct {
	Name string `json:"name" doc:"nofile, core, … without RLIMIT_"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Device is a device node of the host that the container sees.
type Device struct {
	Path        string `json:"path" doc:"on the host"`
	Target      string `json:"target,omitempty" doc:"in the container; Path when empty"`
	Permissions string `json:"permissions,omitempty" doc:"of r, w and m; rwm when empty"`
}

// RestartPolicy says when a container that ended is started again.
type RestartPolicy struct {
	Name       string `json:"name,omitempty" enum:",no,on-failure,always,unless-stopped"`
	MaxRetries int    `json:"maxRetries,omitempty" doc:"on-failure gives up after so many; 0 never"`
}

// HealthConfig is a check run in the container. Durations are nanoseconds on
// the wire. Test is ["NONE"], ["CMD", args…] or ["CMD-SHELL", line].
type HealthConfig struct {
	Test          []string      `json:"test"`
	Interval      time.Duration `json:"interval,omitempty"`
	Timeout       time.Duration `json:"timeout,omitempty"`
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`
	StartInterval time.Duration `json:"startInterval,omitempty"`
	Retries       int           `json:"retries,omitempty"`
}

// LogConfig bounds a container's log files.
type LogConfig struct {
	MaxSize  int64 `json:"maxSize,omitempty" doc:"bytes of one file; 16 MiB when 0"`
	MaxFiles int   `json:"maxFiles,omitempty" doc:"files kept, the current one included; 3 when 0"`
}

// MountPoint is a bind, a volume or a tmpfs in a container.
type MountPoint struct {
	Type        string `json:"type" enum:"bind,volume,tmpfs"`
	Source      string `json:"source,omitempty" doc:"host path or volume name; an empty name makes an anonymous volume"`
	Target      string `json:"target"`
	ReadOnly    bool   `json:"readOnly,omitempty"`
	Propagation string `json:"propagation,omitempty" enum:",private,rprivate,shared,rshared,slave,rslave"`
	Recursive   string `json:"recursive,omitempty" enum:",enabled,disabled" doc:"bind the mounts below Source too; enabled when empty"`
	NoCopy      bool   `json:"noCopy,omitempty" doc:"do not fill a new volume with the image's files"`
	CreateHost  bool   `json:"createHost,omitempty" doc:"make a missing bind source as a folder, as docker run -v does"`
	TmpfsSize   int64  `json:"tmpfsSize,omitempty" doc:"bytes"`
	TmpfsMode   uint32 `json:"tmpfsMode,omitempty"`
	Options     string `json:"options,omitempty" doc:"further mount options, comma separated"`
	// Anonymous is set on volumes made for the container alone.
	Anonymous bool `json:"anonymous,omitempty"`
}

// NetworkChoice says which networks a container joins and how.
type NetworkChoice struct {
	Mode      string           `json:"mode,omitempty" doc:"\"\" for the default bridge, a network's name, host, none, or container:<id>"`
	Endpoints []EndpointConfig `json:"endpoints,omitempty" doc:"settings on the network of Mode, and further networks"`
	Ports     []PortMapping    `json:"ports,omitempty"`
	// PublishAll publishes the image's exposed ports on free ports.
	PublishAll bool `json:"publishAll,omitempty"`
	// Exposed are ports that the container listens on besides the image's.
	Exposed    []Exposed `json:"exposed,omitempty" doc:"80/tcp; added to the image's"`
	DNS        []string  `json:"dns,omitempty"`
	DNSSearch  []string  `json:"dnsSearch,omitempty"`
	DNSOptions []string  `json:"dnsOptions,omitempty"`
	ExtraHosts []string  `json:"extraHosts,omitempty" doc:"name:address; host-gateway stands for the host"`
}

// Exposed is a port that a container says it listens on, such as 80/tcp.
type Exposed string

// State of a container.
type State string

// The states, in the order of a life.
const (
	Created    State = "created"
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting" // ended, waiting for its back-off
	Stopped    State = "exited"
	Removing   State = "removing"
	Dead       State = "dead" // could not be removed whole; remove tries again
)

// Container is one container of a node: what was asked, and how it fares.
type Container struct {
	ID   string `json:"id" doc:"64 hexadecimal digits, or what the client chose that wrote its OCI spec"`
	Name string `json:"name"`
	// Namespace is set on containers whose clients wrote their OCI spec.
	Namespace string `json:"namespace,omitempty" doc:"whose name id is, for a container made through containerd's protocol"`
	Pod       string `json:"pod,omitempty" doc:"id of the pod that it is in"`
	Quiet     bool   `json:"quiet,omitempty" doc:"it is the node's own affair, and in no list"`

	Created time.Time       `json:"created"`
	Config  ContainerConfig `json:"config"`
	// Args is what runs: entrypoint and command, the image's counted in.
	Args     []string        `json:"args"`
	Image    string          `json:"image" doc:"as asked for"`
	ImageID  string          `json:"imageID" doc:"digest of the image's configuration"`
	Manifest string          `json:"manifest" doc:"digest of the manifest that was unpacked"`
	Runtime  string          `json:"runtime"`
	State    ContainerState  `json:"state"`
	Mounts   []Mounted       `json:"mounts"`
	Networks []Endpoint      `json:"networks"`
	Ports    []PortMapping   `json:"ports"`
	Exposed  []Exposed       `json:"exposed,omitempty"`
	LogPath  string          `json:"logPath"`
	Snapshot string          `json:"snapshot"`
	Size     *ContainerSizes `json:"size,omitempty" doc:"only when asked for"`
	Execs    []string        `json:"execs,omitempty" doc:"ids of the execs that run in it; not in lists"`
}

// ContainerState is how a container fares.
type ContainerState struct {
	Status     State     `json:"status"`
	Pid        int       `json:"pid,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int       `json:"exitCode"`
	// ExitUnknown is set where nobody could tell the exit code; ExitCode is
	// then 255 and means nothing.
	ExitUnknown  bool    `json:"exitUnknown,omitempty"`
	OOMKilled    bool    `json:"oomKilled,omitempty"`
	Error        string  `json:"error,omitempty" doc:"why the last start failed"`
	RestartCount int     `json:"restartCount,omitempty"`
	StoppedBy    string  `json:"stoppedBy,omitempty" enum:",user" doc:"user when asked to stop; unless-stopped then stays down"`
	Health       *Health `json:"health,omitempty"`
}

// Health is the outcome of a container's checks.
type Health struct {
	Status        string        `json:"status" enum:"starting,healthy,unhealthy"`
	FailingStreak int           `json:"failingStreak"`
	Log           []HealthProbe `json:"log,omitempty" doc:"the last five"`
}

// HealthProbe is one run of a check.
type HealthProbe struct {
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	ExitCode int       `json:"exitCode"`
	Output   string    `json:"output" doc:"the first 4 KiB"`
}

// Mounted is a mount of a container as it was made.
type Mounted struct {
	MountPoint
	Name string `json:"name,omitempty" doc:"of the volume"`
	Host string `json:"host,omitempty" doc:"the path on the host"`
}

// ContainerSizes is the disk that a container takes, in bytes.
type ContainerSizes struct {
	RootFS int64 `json:"rootFS" doc:"image and writable layer"`
	RW     int64 `json:"rw" doc:"writable layer"`
}

// ContainerUpdate changes a container; what is nil stays.
type ContainerUpdate struct {
	Resources *Resources     `json:"resources,omitempty" doc:"zero fields stay as they are"`
	Restart   *RestartPolicy `json:"restart,omitempty"`
}

// ExecConfig is a further process in a running container.
type ExecConfig struct {
	Command    []string `json:"command"`
	Env        []string `json:"env,omitempty"`
	WorkDir    string   `json:"workDir,omitempty"`
	User       string   `json:"user,omitempty"`
	TTY        bool     `json:"tty,omitempty"`
	OpenStdin  bool     `json:"openStdin,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
	Detach     bool     `json:"detach,omitempty" doc:"output is thrown away"`
	Size       Size     `json:"size,omitzero" doc:"of the terminal"`
}

// Exec is a process made by exec.
type Exec struct {
	ID        string     `json:"id"`
	Container string     `json:"container"`
	Config    ExecConfig `json:"config"`
	Running   bool       `json:"running"`
	Pid       int        `json:"pid,omitempty"`
	ExitCode  int        `json:"exitCode"`
	// ExitUnknown: see ContainerState.
	ExitUnknown bool `json:"exitUnknown,omitempty"`
}

// Size of a terminal, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Exit is how a container's process ended.
type Exit struct {
	Code      int       `json:"code"`
	Unknown   bool      `json:"unknown,omitempty"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	At        time.Time `json:"at"`
	Error     string    `json:"error,omitempty"`
}

// Change is one path of a container that differs from its image.
type Change struct {
	Kind string `json:"kind" enum:"A,C,D" doc:"added, changed, deleted"`
	Path string `json:"path"`
}

// ProcessTable is what ps says of a container's processes.
type ProcessTable struct {
	Titles    []string   `json:"titles"`
	Processes [][]string `json:"processes"`
}

// PathStat describes a path in a container.
type PathStat struct {
	Name   string    `json:"name"`
	Size   int64     `json:"size"`
	Mode   uint32    `json:"mode" doc:"as Go's fs.FileMode"`
	MTime  time.Time `json:"mtime"`
	Target string    `json:"target,omitempty" doc:"of a symbolic link"`
}
