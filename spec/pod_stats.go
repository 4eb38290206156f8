package spec

import "time"

// PodStats is what a pod uses, with its containers.
type PodStats struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Namespace string    `json:"namespace"`
	Time      time.Time `json:"time"`
	PodUsage
	Network    []InterfaceStats    `json:"network" doc:"none on the host's network"`
	Containers []PodContainerStats `json:"containers"`
}

// PodContainerStats is what a container of a pod uses.
type PodContainerStats struct {
	ID   string    `json:"id"`
	Name string    `json:"name"`
	Time time.Time `json:"time"`
	PodUsage
	Written *uint64 `json:"written,omitempty" doc:"bytes in its root file system; absent where they were not counted yet"`
}

// PodUsage is what pods and their containers use alike.
type PodUsage struct {
	CPU        uint64 `json:"cpu" doc:"nanoseconds since it began"`
	CPURate    uint64 `json:"cpuRate" doc:"nanoseconds per second, of late"`
	Memory     uint64 `json:"memory" doc:"bytes, page cache that can be dropped left out"`
	Limit      uint64 `json:"limit" doc:"of memory; 0 for none"`
	Processes  uint64 `json:"processes"`
	Reads      uint64 `json:"readBytes" doc:"from block devices"`
	Writes     uint64 `json:"writeBytes"`
	Throttled  uint64 `json:"throttled" doc:"nanoseconds spent waiting for a CPU quota"`
	OOMKills   uint64 `json:"oomKills"`
	CPUWait    uint64 `json:"cpuWait" doc:"nanoseconds in which some task waited for a processor; 0 where the kernel does not say"`
	MemoryWait uint64 `json:"memoryWait"`
	IOWait     uint64 `json:"ioWait"`
}
