package spec

import "time"

// Builder is what builds images: a BuildKit of the node's own, which runs
// while somebody needs it.
type Builder struct {
	Socket  string `json:"socket" doc:"where BuildKit's clients reach it; it starts when the first one connects"`
	Client  string `json:"client" doc:"path of buildctl, which speaks with it"`
	Server  string `json:"server" doc:"path of buildkitd"`
	Running bool   `json:"running"`

	Pid         int       `json:"pid,omitempty"`
	Started     time.Time `json:"started,omitzero" doc:"when it was started, or found running by this node"`
	Connections int       `json:"connections" doc:"of clients: builds that run, and others"`
	Idle        int       `json:"idle" doc:"seconds after which it is stopped when nobody is connected; -1 for never"`
	Log         string    `json:"log" doc:"file of what it says"`
}

// BuildCache is what builds have left to make the next ones fast.
type BuildCache struct {
	Entries     []BuildCacheEntry `json:"entries"`
	Size        int64             `json:"size" doc:"bytes of all entries that no image shares"`
	Reclaimable int64             `json:"reclaimable" doc:"of it what a prune would give back"`
}

// BuildCacheEntry is one step's result, or something else that was kept.
type BuildCacheEntry struct {
	ID          string    `json:"id"`
	Parents     []string  `json:"parents,omitempty"`
	Type        string    `json:"type" doc:"regular, source.local, exec.cachemount, frontend, internal, …"`
	Description string    `json:"description"`
	Created     time.Time `json:"created,omitzero"`
	LastUsed    time.Time `json:"lastUsed,omitzero"`
	UsageCount  int       `json:"usageCount"`
	Size        int64     `json:"size"`
	InUse       bool      `json:"inUse"`
	Shared      bool      `json:"shared" doc:"with an image or another entry"`
	Mutable     bool      `json:"mutable"`
}

// BuildCachePrune says which entries of the build cache to remove.
type BuildCachePrune struct {
	All    bool     `json:"all,omitempty" doc:"also what is shared, and BuildKit's own images"`
	Unused int      `json:"unused,omitempty" doc:"only what nobody has used for so many seconds"`
	Keep   int64    `json:"keep,omitempty" doc:"leave so many bytes of the cache"`
	Filter []string `json:"filter,omitempty" doc:"as BuildKit has them, such as type==exec.cachemount"`
}
