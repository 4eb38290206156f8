package spec

import "time"

// Image is an image that a node holds. Several names may point at one.
type Image struct {
	// ID is the digest of the configuration, as docker shows it.
	ID string `json:"id"`
	// Target is the digest that the names point at: a manifest or an index.
	Target   string    `json:"target"`
	Manifest string    `json:"manifest" doc:"digest of the manifest of Platform"`
	Names    []string  `json:"names" doc:"full references, docker.io/library/alpine:3.20"`
	Created  time.Time `json:"created,omitzero" doc:"by its builder; zero where it says nothing"`
	Pulled   time.Time `json:"pulled,omitzero"`
	Platform string    `json:"platform"`
	// Size is the unpacked size; Blobs is that of its compressed parts, be they
	// kept on this node or not.
	Size   int64             `json:"size"`
	Blobs  int64             `json:"blobs"`
	Layers []string          `json:"layers" doc:"diff IDs, lowest first"`
	Labels map[string]string `json:"labels,omitempty"`
	Config ImageConfig       `json:"config"`
	Author string            `json:"author,omitempty"`
	// Containers counts those made from it.
	Containers int      `json:"containers"`
	Sources    []string `json:"sources,omitempty" doc:"repositories that parts of it came from or went to, docker.io/library/alpine"`
}

// ImageConfig is what an image says of the containers made from it.
type ImageConfig struct {
	User         string            `json:"user,omitempty"`
	Env          []string          `json:"env,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitzero"`
	Command      []string          `json:"command,omitzero"`
	WorkDir      string            `json:"workDir,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	ExposedPorts []Exposed         `json:"exposedPorts,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`
	Health       *HealthConfig     `json:"health,omitempty"`
}

// HistoryEntry is one step of an image's making, newest first in lists.
type HistoryEntry struct {
	Created   time.Time `json:"created,omitzero"`
	CreatedBy string    `json:"createdBy"`
	Comment   string    `json:"comment,omitempty"`
	Empty     bool      `json:"empty,omitempty" doc:"made no layer"`
	Size      int64     `json:"size" doc:"unpacked"`
	DiffID    string    `json:"diffID,omitempty"`
}

// PullRequest asks for an image.
type PullRequest struct {
	Reference string        `json:"reference"`
	Platform  string        `json:"platform,omitempty"`
	Auth      *RegistryAuth `json:"auth,omitempty"`
	// Insecure allows plain HTTP and unknown certificates. Registries on
	// loopback may always speak plain HTTP.
	Insecure bool `json:"insecure,omitempty"`
}

// PushRequest sends an image to the registry that its reference names.
type PushRequest struct {
	Reference string        `json:"reference"`
	Auth      *RegistryAuth `json:"auth,omitempty"`
	Insecure  bool          `json:"insecure,omitempty"`
	Platform  string        `json:"platform,omitempty" doc:"push this one only; all that is here when empty"`
	Logins    Logins        `json:"logins,omitempty" doc:"for the registries where layers are that this node has not kept"`
}

// Logins are how to log in to registries, by their hosts (docker.io,
// localhost:5000).
type Logins map[string]RegistryAuth

// RegistryAuth is how to log in to a registry. The client finds it in
// ~/.docker/config.json and its credential helpers; the node keeps none.
type RegistryAuth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identityToken,omitempty" doc:"an OAuth2 refresh token"`
	RegistryToken string `json:"registryToken,omitempty" doc:"a bearer token, sent as it is"`
}

// Phase of moving an image.
type Phase string

// The phases, in their order.
const (
	Resolving Phase = "resolve"
	Fetching  Phase = "fetch"
	Unpacking Phase = "unpack"
	Pushing   Phase = "push"
	Done      Phase = "done"
)

// Progress is one step of moving an image. The last of a stream has phase Done
// and either status complete or Error; pull and load name their images at the
// end.
type Progress struct {
	Phase   Phase  `json:"phase"`
	Item    string `json:"item,omitempty" doc:"digest of the blob, or the reference"`
	Current int64  `json:"current,omitempty" doc:"bytes"`
	Total   int64  `json:"total,omitempty" doc:"bytes; 0 where unknown"`
	// Status is set where there is something to say: exists, waiting, mounted,
	// retrying, repairing, complete.
	Status string   `json:"status,omitempty"`
	Image  *Image   `json:"image,omitempty"`
	Error  *Problem `json:"error,omitempty"`
}

// CommitRequest makes an image of a container.
type CommitRequest struct {
	Reference string   `json:"reference,omitempty"`
	Author    string   `json:"author,omitempty"`
	Message   string   `json:"message,omitempty"`
	Changes   []string `json:"changes,omitempty" doc:"Dockerfile lines: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR, STOPSIGNAL, HEALTHCHECK"`
	NoPause   bool     `json:"noPause,omitempty" doc:"do not pause the container while its changes are read"`
	Sync      bool     `json:"sync,omitempty" doc:"answer when the image would survive a loss of power"`
}

// RemovedImage says what removing did.
type RemovedImage struct {
	Untagged string `json:"untagged,omitempty"`
	Deleted  string `json:"deleted,omitempty"`
}

// Pruned says what a prune removed.
type Pruned struct {
	Removed   []string `json:"removed"`
	Reclaimed int64    `json:"reclaimed" doc:"bytes"`
}
