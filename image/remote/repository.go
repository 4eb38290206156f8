// Package remote speaks the OCI distribution protocol with the registry that
// holds one repository: which hosts answer for it (certs.d/<host>/hosts.toml:
// mirrors, CAs, client certificates), who we are there, what to try again
// and what the answers mean. Errors carry a kind of base/errs and say what
// can be done.
//
// No request has a deadline on its duration; every one has a deadline on
// lack of progress, Config.Stall.
package remote

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"berth/base/errs"
	"berth/image/reference"
	"berth/spec"
)

// DefaultCertDirs are searched for <host>/hosts.toml, in this order.
func DefaultCertDirs() []string {
	return []string{"/etc/berth/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"}
}

// Config is how to reach registries.
type Config struct {
	// CertDirs hold a folder for each registry host; the first that has one
	// decides. nil means DefaultCertDirs.
	CertDirs []string
	// Stall is how long a connection may give no byte; 30 s if zero.
	Stall time.Duration
	// Attempts is how often in a row the same step is tried; 5 if zero.
	Attempts int
	// Backoff is the first pause between attempts; it doubles. 250 ms if zero.
	Backoff time.Duration
	// Chunk is how much of a blob goes up at a time once it has failed in one
	// piece; 16 MiB if zero.
	Chunk int64
	// UserAgent is sent with each request; "berth" if empty.
	UserAgent string
	Log       *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.CertDirs == nil {
		c.CertDirs = DefaultCertDirs()
	}
	if c.Stall == 0 {
		c.Stall = 30 * time.Second
	}
	if c.Attempts == 0 {
		c.Attempts = 5
	}
	if c.Backoff == 0 {
		c.Backoff = 250 * time.Millisecond
	}
	if c.Chunk == 0 {
		c.Chunk = 16 << 20
	}
	if c.UserAgent == "" {
		c.UserAgent = "berth"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Access is what a caller may and wants to do with a repository.
type Access struct {
	Auth     *spec.RegistryAuth // nil for anonymous
	Insecure bool               // plain HTTP and unknown certificates will do
	Push     bool               // ask for the right to write
	// Retrying, if set, hears of each failed attempt and the pause before
	// the next.
	Retrying func(err error, pause time.Duration)
}

// Repository is one repository of a registry, seen with one Access. Safe for
// concurrent use. Close it to let its connections go.
type Repository struct {
	cfg    Config
	name   reference.Name
	access Access
	hosts  []docker.RegistryHost
	quiet  *logrus.Entry
}

// Open finds the hosts that answer for name. It reads configuration, but
// asks nobody yet.
func Open(ctx context.Context, cfg Config, name reference.Name, access Access) (*Repository, error) {
	if name.IsZero() {
		return nil, errs.New(errs.Invalid, "image reference is empty")
	}
	r := &Repository{cfg: cfg.withDefaults(), name: name, access: access}
	r.quiet = slogEntry(ctx, r.cfg.Log)
	hosts, err := r.findHosts(r.quieted(ctx))
	if err != nil {
		return nil, err
	}
	r.hosts = hosts
	return r, nil
}

// Name is the reference that the repository was opened with.
func (r *Repository) Name() reference.Name { return r.name }

// Close lets idle connections go.
func (r *Repository) Close() {
	for _, h := range r.hosts {
		h.Client.CloseIdleConnections()
	}
}

// upstream is the registry's own host, as opposed to a mirror.
func (r *Repository) upstream() string {
	if r.name.Domain() == "docker.io" {
		return "registry-1.docker.io"
	}
	return r.name.Domain()
}

// able picks the hosts that may do c.
func (r *Repository) able(c docker.HostCapabilities) []docker.RegistryHost {
	var hosts []docker.RegistryHost
	for _, h := range r.hosts {
		if h.Capabilities.Has(c) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// quieted leads what the library logs into ours.
func (r *Repository) quieted(ctx context.Context) context.Context {
	return log.WithLogger(ctx, r.quiet)
}

// scoped adds the rights that a token must carry.
func (r *Repository) scoped(ctx context.Context) context.Context {
	rights := ":pull"
	if r.access.Push {
		rights = ":pull,push"
	}
	return docker.WithScope(r.quieted(ctx), "repository:"+r.name.Path()+rights)
}

// bearer sends a ready-made token; nothing can be negotiated.
type bearer struct{ host, token string }

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	if req.URL.Host == b.host {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	return nil
}

func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return errs.New(errs.Anonymous, "the given registry token was not accepted")
}
