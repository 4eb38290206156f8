package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"

	"berth/base/errs"
)

// socketBuffer is large, since a body is mostly read past it anyway and
// uploads go through it.
const socketBuffer = 64 << 10

func (r *Repository) findHosts(ctx context.Context) ([]docker.RegistryHost, error) {
	opts := config.HostOptions{
		HostDir:      r.hostDir,
		Credentials:  r.credentials,
		UpdateClient: r.tune,
	}
	if r.access.Insecure {
		opts.DefaultScheme = "http"                             // HTTPS first, since there is a TLS configuration
		opts.DefaultTLS = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // what the user asked for
	}
	hosts, err := config.ConfigureHosts(ctx, opts)(r.name.Domain())
	if err != nil {
		return nil, fmt.Errorf("registry configuration of %s: %w", r.name.Domain(), err)
	}
	if len(hosts) == 0 {
		return nil, errs.New(errs.NotFound, "the hosts.toml of %s names no host", r.name.Domain())
	}
	if a := r.access.Auth; a != nil && a.RegistryToken != "" {
		for i := range hosts {
			hosts[i].Authorizer = bearer{r.upstream(), a.RegistryToken}
		}
	}
	return hosts, nil
}

// hostDir finds the folder with the configuration of host.
func (r *Repository) hostDir(host string) (string, error) {
	for _, root := range r.cfg.CertDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if err != nil || dir == "" {
			continue // not here
		}
		return dir, checkHostsFile(filepath.Join(dir, "hosts.toml"))
	}
	return "", nil
}

// checkHostsFile refuses a file that cannot be read: the library would go on
// without the mirrors and CAs that it names.
func checkHostsFile(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var any map[string]any
	if err := toml.Unmarshal(b, &any); err != nil {
		return errs.New(errs.Invalid, "%s: %w", path, err)
	}
	return nil
}

// credentials go to the registry itself, never to a mirror.
func (r *Repository) credentials(host string) (user, secret string, err error) {
	a := r.access.Auth
	if a == nil || host != r.upstream() && !strings.EqualFold(host, r.name.Domain()) {
		return "", "", nil
	}
	if a.IdentityToken != "" {
		return "", a.IdentityToken, nil
	}
	return a.Username, a.Password, nil
}

// tune fits the library's HTTP client to blobs: no compression on the wire,
// which would break digests and ranges, and no deadline on how long a
// registry may take over an upload; the stall deadline covers that.
func (r *Repository) tune(c *http.Client) error {
	t, ok := c.Transport.(*http.Transport)
	if !ok {
		return nil
	}
	t.DisableCompression = true
	t.ResponseHeaderTimeout = 0
	t.ReadBufferSize, t.WriteBufferSize = socketBuffer, socketBuffer
	t.MaxIdleConnsPerHost = 8
	return nil
}

// slogEntry makes a logger of the library's kind that writes to ours.
func slogEntry(ctx context.Context, to *slog.Logger) *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.WarnLevel)
	if to.Enabled(ctx, slog.LevelDebug) {
		l.SetLevel(logrus.DebugLevel)
	}
	l.AddHook(slogHook{to})
	return logrus.NewEntry(l)
}

type slogHook struct{ to *slog.Logger }

func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h slogHook) Fire(e *logrus.Entry) error {
	ctx := e.Context
	if ctx == nil {
		return nil
	}
	h.to.DebugContext(ctx, "registry client", "text", e.Message)
	return nil
}
