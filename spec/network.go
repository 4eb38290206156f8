package spec

import "time"

// NetworkConfig is what a user asks of a network.
type NetworkConfig struct {
	Name     string            `json:"name"`
	Driver   string            `json:"driver,omitempty" doc:"bridge, or cni for a network of the CNI configuration"`
	Subnets  []Subnet          `json:"subnets,omitempty" doc:"chosen from the node's pools when empty"`
	IPv6     bool              `json:"ipv6,omitempty"`
	Internal bool              `json:"internal,omitempty" doc:"no way out"`
	MTU      int               `json:"mtu,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

// Subnet is a range of addresses in a network, in CIDR form.
type Subnet struct {
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway,omitempty"`
	Range   string `json:"range,omitempty" doc:"addresses are given out of this part only"`
}

// Network is a network of a node.
type Network struct {
	ID        string        `json:"id"`
	Name      string        `json:"name" doc:"as in its config"`
	Created   time.Time     `json:"created"`
	Config    NetworkConfig `json:"config"`
	Interface string        `json:"interface,omitempty" doc:"the bridge on the host"`
	Builtin   bool          `json:"builtin,omitempty" doc:"bridge, host and none cannot be removed"`
	Endpoints []Endpoint    `json:"endpoints"`
}

// EndpointConfig is how a container wants to be on a network.
type EndpointConfig struct {
	Network string   `json:"network"`
	Aliases []string `json:"aliases,omitempty" doc:"further names that the network resolves"`
	IPv4    string   `json:"ipv4,omitempty"`
	IPv6    string   `json:"ipv6,omitempty"`
	MAC     string   `json:"mac,omitempty"`
}

// Endpoint is a container on a network.
type Endpoint struct {
	Network   string   `json:"network"`
	Container string   `json:"container"`
	Name      string   `json:"name" doc:"of the container"`
	Interface string   `json:"interface" doc:"in the container"`
	MAC       string   `json:"mac,omitempty"`
	IPv4      string   `json:"ipv4,omitempty" doc:"with the prefix length"`
	IPv6      string   `json:"ipv6,omitempty" doc:"with the prefix length"`
	Gateway4  string   `json:"gateway4,omitempty"`
	Gateway6  string   `json:"gateway6,omitempty"`
	Aliases   []string `json:"aliases,omitempty"`
}

// PortMapping publishes a container's port on the host.
type PortMapping struct {
	HostIP        string `json:"hostIP,omitempty" doc:"all addresses when empty"`
	HostPort      uint16 `json:"hostPort,omitempty" doc:"a free one when 0"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty" enum:",tcp,udp,sctp" doc:"tcp when empty"`
	// Range is the number of ports; 0 and 1 mean one.
	Range uint16 `json:"range,omitempty"`
}

// VolumeConfig is what a user asks of a volume.
type VolumeConfig struct {
	Name    string            `json:"name,omitempty" doc:"made up when empty; the volume is then anonymous"`
	Driver  string            `json:"driver,omitempty" doc:"local"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty" doc:"type, device and o, as mount(8) takes them"`
}

// Volume is a volume of a node.
type Volume struct {
	Name      string            `json:"name"`
	Driver    string            `json:"driver"`
	Path      string            `json:"path" doc:"on the host"`
	Created   time.Time         `json:"created"`
	Anonymous bool              `json:"anonymous,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
	UsedBy    []string          `json:"usedBy,omitempty" doc:"ids of containers"`
	Size      *int64            `json:"size,omitempty" doc:"only when asked for"`
}
