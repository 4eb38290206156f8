package spec

import "time"

// Opaque is a message of a client's protocol that is kept and given back byte
// for byte.
type Opaque struct {
	Type  string `json:"type"`
	Value []byte `json:"value,omitempty"`
}

// Given is a container whose OCI spec its client wrote, and whose root file
// system its client mounts: what containerd's protocol calls a container. The
// node runs it as it is told.
type Given struct {
	// Namespace is whose name ID is; "default" is where the node's own
	// containers are seen.
	Namespace string            `json:"namespace"`
	ID        string            `json:"id"`
	Labels    map[string]string `json:"labels,omitempty"`
	Image     string            `json:"image,omitempty"`
	Runtime   string            `json:"runtime" doc:"io.containerd.runc.v2, or the name of a shim"`
	Options   *Opaque           `json:"options,omitempty" doc:"of the runtime"`
	Spec      *Opaque           `json:"spec,omitempty" doc:"the OCI runtime spec, as JSON in Value"`

	Snapshotter string            `json:"snapshotter,omitempty"`
	SnapshotKey string            `json:"snapshotKey,omitempty"`
	Sandbox     string            `json:"sandbox,omitempty"`
	Extensions  map[string]Opaque `json:"extensions,omitempty"`

	// The rest is said only of containers in pods. Of those SnapshotKey is the
	// store's own, and Snapshotter empty.
	Name      string `json:"name,omitempty" doc:"what people call it: namespace/pod/container"`
	Log       string `json:"log,omitempty" doc:"file of its output, in the form of the CRI"`
	Stdin     bool   `json:"stdin,omitempty"`
	StdinOnce bool   `json:"stdinOnce,omitempty"`
	Quiet     bool   `json:"quiet,omitempty" doc:"not for people: in no list, and in no event"`
	// Owned is set on those that the node has made for a pod: nobody else
	// starts them.
	Owned bool `json:"owned,omitempty"`

	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
}

// DefaultNamespace is where the node's own images and containers are seen.
const DefaultNamespace = "default"
