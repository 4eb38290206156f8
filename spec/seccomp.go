package spec

// SeccompProfile allows the system calls that containers were seen to make.
type SeccompProfile struct {
	Name  string   `json:"name"`
	From  []string `json:"from" doc:"whose calls were recorded, as namespace/pod/container"`
	Calls []string `json:"calls" doc:"names of the system calls that it allows"`
	// Profile is that of OCI, which Kubernetes takes as a localhost profile.
	Profile any `json:"profile,omitempty" doc:"as runtimes take it; only of one that was asked for"`
}
