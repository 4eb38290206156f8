package spec

import "time"

// Problem is an error on the wire, in the form of RFC 9457.
type Problem struct {
	Type   string `json:"type,omitempty"`
	Title  string `json:"title" doc:"the kind of error: not found, conflict, …"`
	Status int    `json:"status"`
	Detail string `json:"detail" doc:"what went wrong and what to do about it"`
	// ExitCode is set where a process could not be started.
	ExitCode int `json:"exitCode,omitempty" doc:"what a shell would exit with: 127 for no such command, 126 for one that cannot run, else 128"`
}

// Event is something that happened on a node.
type Event struct {
	// Seq grows by one; a reader that saw a gap has missed something.
	Seq        uint64            `json:"seq"`
	Time       time.Time         `json:"time"`
	Type       string            `json:"type" enum:"container,image,network,volume,node,system"`
	Action     string            `json:"action" doc:"create, start, die, oom, pull, …"`
	ID         string            `json:"id"`
	Attributes map[string]string `json:"attributes,omitempty" doc:"name, image, exitCode, signal, …"`
}

// Stats is what a container uses now. Counters grow from its start.
type Stats struct {
	ID     string    `json:"id"`
	Name   string    `json:"name"`
	Time   time.Time `json:"time"`
	CPU    CPUStats  `json:"cpu"`
	Memory struct {
		Usage      uint64 `json:"usage" doc:"bytes, page cache that can be dropped left out"`
		Limit      uint64 `json:"limit" doc:"the machine's memory where there is none"`
		Cache      uint64 `json:"cache"`
		RSS        uint64 `json:"rss"`
		OOMKills   uint64 `json:"oomKills"`
		MajorFault uint64 `json:"majorFaults"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current"`
		Limit   uint64 `json:"limit" doc:"0 for none"`
	} `json:"pids"`
	IO struct {
		ReadBytes  uint64 `json:"readBytes"`
		WriteBytes uint64 `json:"writeBytes"`
		Reads      uint64 `json:"reads"`
		Writes     uint64 `json:"writes"`
	} `json:"io"`
	Network []InterfaceStats `json:"network"`
}

// CPUStats is time spent on processors, in nanoseconds.
type CPUStats struct {
	Total            uint64 `json:"total"`
	User             uint64 `json:"user"`
	System           uint64 `json:"system"`
	ThrottledPeriods uint64 `json:"throttledPeriods"`
	ThrottledTime    uint64 `json:"throttledTime"`
	Online           int    `json:"online" doc:"processors the container may use"`
}

// InterfaceStats is the traffic of one network interface of a container.
type InterfaceStats struct {
	Name      string `json:"name"`
	RxBytes   uint64 `json:"rxBytes"`
	RxPackets uint64 `json:"rxPackets"`
	RxErrors  uint64 `json:"rxErrors"`
	RxDropped uint64 `json:"rxDropped"`
	TxBytes   uint64 `json:"txBytes"`
	TxPackets uint64 `json:"txPackets"`
	TxErrors  uint64 `json:"txErrors"`
	TxDropped uint64 `json:"txDropped"`
}

// Version says what answers.
type Version struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	Built     string `json:"built,omitempty"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
	API       string `json:"api"`
}

// Info describes a node.
type Info struct {
	ID            string            `json:"id"`
	Name          string            `json:"name"`
	Version       Version           `json:"version"`
	Started       time.Time         `json:"started"`
	Kernel        string            `json:"kernel"`
	OS            string            `json:"os"`
	Architecture  string            `json:"architecture"`
	CPUs          int               `json:"cpus"`
	Memory        uint64            `json:"memory" doc:"bytes"`
	Cgroup        string            `json:"cgroup" enum:"v1,v2"`
	Root          string            `json:"root"`
	State         string            `json:"state"`
	Socket        string            `json:"socket"`
	Snapshotter   string            `json:"snapshotter" doc:"the storage driver in use"`
	Storage       []StorageDriver   `json:"storage" doc:"storage drivers from the best down to the one in use"`
	Runtimes      map[string]string `json:"runtimes" doc:"name to the version it reports"`
	Runtime       string            `json:"runtime" doc:"used where none is asked for"`
	NodePid       int               `json:"nodePid"`
	KeeperPid     int               `json:"keeperPid"`
	Containers    map[State]int     `json:"containers"`
	Images        int               `json:"images"`
	Security      []string          `json:"security" doc:"seccomp, apparmor, userns, …"`
	Warnings      []string          `json:"warnings,omitempty"`
	RegistryHosts string            `json:"registryHosts" doc:"folder of certs.d/<host>/hosts.toml"`
	Scrubbed      *ScrubResult      `json:"scrubbed,omitempty" doc:"how the last scrub ended"`
}

// StorageDriver is a way of keeping layers.
type StorageDriver struct {
	Name string `json:"name"`
	Why  string `json:"why,omitempty" doc:"why it is not used"`
}

// DiskUsage is what a node keeps on disk, in bytes as the file system counts
// them: a file of one byte takes a block. The shares and Other make up Total.
type DiskUsage struct {
	Images     DiskShare `json:"images" doc:"their layers; size is that of Store without its uppers"`
	Containers DiskShare `json:"containers" doc:"what they have written; size is the uppers of Store"`
	Volumes    DiskShare `json:"volumes"`
	Blobs      DiskShare `json:"blobs" doc:"manifests, configurations, compressed layers, downloads under way"`
	Other      int64     `json:"other" doc:"records, logs and the like"`
	BuildCache DiskShare `json:"buildCache" doc:"what builds have left, when BuildKit was asked last; it is part of images and blobs"`
	Total      int64     `json:"total"`

	Store         StoreUsage   `json:"store"`
	ImageList     []ImageUsage `json:"imageList"`
	ContainerList []Container  `json:"containerList" doc:"with their sizes"`
	VolumeList    []Volume     `json:"volumeList" doc:"with their sizes"`
}

// DiskShare is one line of DiskUsage.
type DiskShare struct {
	Total       int   `json:"total"`
	Active      int   `json:"active" doc:"in use by a container"`
	Size        int64 `json:"size"`
	Reclaimable int64 `json:"reclaimable"`
}

// StoreUsage is what the layers of images and containers take.
type StoreUsage struct {
	Objects     int64 `json:"objects" doc:"bodies of files, once each"`
	ObjectCount int64 `json:"objectCount"`
	Metadata    int64 `json:"metadata" doc:"the trees of layers"`
	Layers      int64 `json:"layers" doc:"layers that are kept as folders"`
	Uppers      int64 `json:"uppers" doc:"what containers have written"`
	Inodes      int64 `json:"inodes" doc:"files and folders of all but the uppers"`
	UpperInodes int64 `json:"upperInodes"`
}

// ImageUsage is what one image takes, its blobs included.
type ImageUsage struct {
	ID         string    `json:"id"`
	Names      []string  `json:"names"`
	Created    time.Time `json:"created,omitzero"`
	Shared     int64     `json:"shared" doc:"what other images need too"`
	Own        int64     `json:"own" doc:"what would be given back if just this image were removed"`
	Blobs      int64     `json:"blobs" doc:"how much of the two is blobs"`
	Containers int       `json:"containers"`
}

// ScrubRequest asks to read all that images are made of, and to hold it
// against its digests.
type ScrubRequest struct {
	NoRepair bool   `json:"noRepair,omitempty" doc:"only look"`
	Logins   Logins `json:"logins,omitempty" doc:"for the registries that repairs are fetched from"`
}

// ScrubProgress is one line of a scrub's progress. The last has Result or
// Error.
type ScrubProgress struct {
	Part    string       `json:"part,omitempty" doc:"what is being read: object, metadata, layer, blob"`
	Checked int64        `json:"checked" doc:"how many parts have been read"`
	Bytes   int64        `json:"bytes" doc:"that have been read"`
	Total   int64        `json:"total,omitempty" doc:"bytes to read in all, roughly; 0 where unknown"`
	Damage  *Damage      `json:"damage,omitempty" doc:"of what was found last"`
	Result  *ScrubResult `json:"result,omitempty"`
	Error   *Problem     `json:"error,omitempty"`
}

// Damage is something that is not what its digest says, or is missing.
type Damage struct {
	Part     string   `json:"part" enum:"object,metadata,layer,blob"`
	Name     string   `json:"name" doc:"a digest, or a file's name"`
	What     string   `json:"what" doc:"what is wrong with it"`
	Images   []string `json:"images" doc:"those that it touches: names, or ids where there is none"`
	Repaired bool     `json:"repaired"`
	Repair   string   `json:"repair,omitempty" doc:"where it was had from, or why it stays"`
}

// ScrubResult is how a scrub ended.
type ScrubResult struct {
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended"`
	Checked  int64     `json:"checked"`
	Bytes    int64     `json:"bytes"`
	Damaged  int       `json:"damaged"`
	Repaired int       `json:"repaired"`
	Note     string    `json:"note,omitempty" doc:"what could not be checked, and why"`
}

// SystemPruned says what pruning everything removed.
type SystemPruned struct {
	Containers Pruned `json:"containers"`
	Networks   Pruned `json:"networks"`
	Images     Pruned `json:"images"`
	Volumes    Pruned `json:"volumes"`
	BuildCache Pruned `json:"buildCache"`
}

// Filter chooses from a list: a value of every key must fit. Keys are those
// of docker's --filter: name, id, label, status, ancestor, network, …
type Filter map[string][]string
