package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"berth/node/builder"
	"berth/node/collect"
	"berth/spec"
)

// BuilderDefaults say how images are built.
type BuilderDefaults struct {
	Buildkitd   string `toml:"buildkitd"`    // the program; beside berth or in PATH when empty
	Buildctl    string `toml:"buildctl"`     // the program; beside buildkitd or in PATH when empty
	Config      string `toml:"config"`       // file of further settings, as buildkitd.toml: registries, collection
	Network     string `toml:"network"`      // of build steps: host, bridge or cni; host when neither this nor Config says
	IdleSeconds int    `toml:"idle_seconds"` // buildkitd is stopped after so long without a client; 600 when 0, never when less
	CacheBytes  int64  `toml:"cache_bytes"`  // what the build cache may take; as BuildKit has it when 0
}

// openBuilder prepares for builds; BuildKit is started when somebody builds.
func (n *node) openBuilder(ctx context.Context) (err error) {
	c := n.config.Builder
	n.builder, err = builder.Open(ctx, builder.Config{
		Dir: filepath.Join(n.config.Root, "buildkit"), State: n.config.State,
		Worker: builder.Worker{Socket: n.config.Socket, Namespace: spec.DefaultNamespace, Snapshotter: n.storage.name, Cgroup: n.buildCgroup()},
		Server: c.Buildkitd, Client: c.Buildctl, Settings: c.Config, Network: c.Network,
		Idle: time.Duration(c.IdleSeconds) * time.Second, Limit: c.CacheBytes,
		Group: groupID(n.config.Group),
		Tidy:  n.tidyBuilds,
		Log:   n.log.With("room", "builder"),
	})
	if err != nil {
		return err
	}
	n.onClose("builder", n.builder.Close)
	return nil
}

// buildCgroup is above the cgroups of build steps.
func (n *node) buildCgroup() string { return filepath.Join(n.cgroup(), "build") }

// tidyBuilds removes the containers of build steps, which a buildkitd leaves
// that is killed, and the cgroup above theirs.
func (n *node) tidyBuilds(ctx context.Context) error {
	given, err := n.containers.Givens(ctx, spec.DefaultNamespace)
	if err != nil {
		return err
	}
	for _, g := range given {
		if !strings.HasPrefix(cgroupOf(g), n.buildCgroup()+"/") {
			continue
		}
		if e := n.containers.Remove(ctx, g.ID, true, true); e != nil {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, collect.Cgroups(n.cgroup()).Discard(ctx, filepath.Base(n.buildCgroup())))
}

// cgroupOf is where a container's client wanted it.
func cgroupOf(g spec.Given) string {
	if g.Spec == nil {
		return ""
	}
	var wanted struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(g.Spec.Value, &wanted) != nil {
		return "" // it is its client's to be wrong about it
	}
	return wanted.Linux.CgroupsPath
}
