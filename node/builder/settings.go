package builder

import (
	"maps"
	"os"
	"path/filepath"
	"strconv"

	"github.com/pelletier/go-toml/v2"

	"berth/base/errs"
)

// table is a table of TOML.
type table = map[string]any

// writeSettings writes the file that buildkitd reads: the operator's settings,
// with those that are the node's to make, and what both leave open.
func (b *Builder) writeSettings() (path string, err error) {
	settings := table{}
	if b.Settings != "" {
		text, err := os.ReadFile(b.Settings)
		if err != nil {
			return "", errs.New(errs.Invalid, "settings of the builder: %w", err)
		}
		if err := toml.Unmarshal(text, &settings); err != nil {
			return "", errs.New(errs.Invalid, "settings of the builder, %s: %w", b.Settings, err)
		}
	}
	b.complete(settings)
	text, err := toml.Marshal(settings)
	if err != nil {
		return "", err
	}
	path = b.settingsPath()
	return path, os.WriteFile(path, text, 0o600) // it may hold keys of registries
}

func (b *Builder) complete(settings table) {
	usual(settings, table{
		// Who may use the node may run containers with these rights anyway; a
		// build has to ask for them.
		"insecure-entitlements": []string{"network.host", "security.insecure"},
	})
	settings["root"] = b.Dir
	below(settings, "grpc")["address"] = []string{"fd://"}
	workers := below(settings, "worker")
	below(workers, "oci")["enabled"] = false

	worker := below(workers, "containerd")
	usual(worker, table{"networkMode": "host", "gc": true, "cniBinaryPath": cniFolder()})
	if b.Network != "" {
		worker["networkMode"] = b.Network
	}
	if b.Limit > 0 {
		// Nothing goes while there is less, whatever the disk has left.
		limit := strconv.FormatInt(b.Limit, 10)
		maps.Copy(worker, table{"reservedSpace": limit, "maxUsedSpace": limit})
	}
	maps.Copy(worker, table{
		"enabled": true, "address": b.Worker.Socket, "namespace": b.Worker.Namespace,
		"snapshotter": b.Worker.Snapshotter, "defaultCgroupParent": b.Worker.Cgroup,
	})
}

// cniFolder is where distributions have the plugins, or where their authors do.
func cniFolder() string {
	const debian = "/usr/lib/cni"
	if _, err := os.Stat(filepath.Join(debian, "bridge")); err == nil {
		return debian
	}
	return "/opt/cni/bin"
}

// usual sets what is not set.
func usual(t, defaults table) {
	for key, value := range defaults {
		if _, set := t[key]; !set {
			t[key] = value
		}
	}
}

// below is a table in t, made where there is none.
func below(t table, key string) table {
	in, ok := t[key].(table)
	if !ok {
		in = table{}
		t[key] = in
	}
	return in
}
