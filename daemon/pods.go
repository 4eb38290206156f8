package daemon

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/image"
	"berth/node/kernelns"
	"berth/node/nri"
	"berth/node/pod"
	"berth/node/seccomp"
	"berth/spec"
)

// CRIDefaults say how the node serves Kubernetes.
type CRIDefaults struct {
	Enabled *bool `toml:"enabled"` // true when nil
	// StreamAddr is where exec, attach and port-forward are served;
	// 127.0.0.1:0 when empty. With a certificate and a key they are served by
	// TLS.
	StreamAddr    string `toml:"stream_addr"`
	StreamTLSCert string `toml:"stream_tls_cert"`
	StreamTLSKey  string `toml:"stream_tls_key"`
	// PodReadyPool is how many sets of namespaces wait for pods; 4 when nil.
	PodReadyPool *int `toml:"pod_ready_pool"`
	// SeccompProfileRoot is where localhost profiles with a relative name are;
	// kubelet's folder when empty.
	SeccompProfileRoot string `toml:"seccomp_profile_root"`
	// SeccompDefault: containers that name no seccomp profile have the default
	// one. Kubelet names one always, what its --seccomp-default says.
	SeccompDefault bool `toml:"seccomp_default"`
	// SeccompTrusting: annotations of pods may have forbidden system calls go
	// through (audit), and recorded profiles written below SeccompProfileRoot.
	SeccompTrusting bool `toml:"seccomp_trusting"`
	// Pause is a static program that runs as the first process of a PID
	// namespace that a pod's containers share; a tiny one of the node's own
	// when empty.
	Pause string `toml:"pause"`
	// PinnedImages are names, or patterns of them, of images that stay when
	// kubelet wants disk.
	PinnedImages []string `toml:"pinned_images"`
	// AllowedAnnotations are names, or patterns of them, of annotations of pods
	// and containers that reach the runtime: some change what it does.
	AllowedAnnotations []string `toml:"allowed_annotations"`
	// RestoreByCreate: a container may be made of a checkpoint that takes the
	// place of its image. Who writes a checkpoint chooses the rights of its
	// processes.
	RestoreByCreate bool `toml:"restore_by_create"`
	// PullStallSeconds is how long nothing may come of a pull; 300 when 0.
	PullStallSeconds int `toml:"pull_stall_seconds"`
}

// On says whether Kubernetes is served.
func (d CRIDefaults) On() bool { return d.Enabled == nil || *d.Enabled }

// NRIDefaults say whether plugins may take part in the lives of pods.
type NRIDefaults struct {
	Enabled *bool  `toml:"enabled"` // true when nil
	Socket  string `toml:"socket"`  // nri's own place when empty; a node in folders of its own has it there
	// PluginDir is of programs that the node starts, ConfigDir of what they are
	// told; nri's own places when empty.
	PluginDir string `toml:"plugin_dir"`
	ConfigDir string `toml:"config_dir"`
	// RequestSeconds is how long a plugin may take for an answer; 3 when 0.
	RequestSeconds int           `toml:"request_seconds"`
	Validator      *NRIValidator `toml:"validator"`
}

// NRIValidator is what plugins may not change, and which of them there must be.
type NRIValidator struct {
	RejectHooks             bool     `toml:"reject_hooks"`
	RejectDefaultSeccomp    bool     `toml:"reject_default_seccomp"`
	RejectUnconfinedSeccomp bool     `toml:"reject_unconfined_seccomp"`
	RejectLocalhostSeccomp  bool     `toml:"reject_localhost_seccomp"`
	RejectNamespaces        bool     `toml:"reject_namespaces"`
	RejectSysctls           bool     `toml:"reject_sysctls"`
	Required                []string `toml:"required"`
	Tolerate                string   `toml:"tolerate"` // annotation of who needs none of Required
}

const (
	defaultReadyPool   = 4
	defaultProfileRoot = "/var/lib/kubelet/seccomp"
)

// pods is what the node has for Kubernetes, below the face.
type pods struct {
	set        *pod.Set
	namespaces *kernelns.Set
	plugins    *nri.Plugins // nil where there are to be none
	watcher    *seccomp.Watcher
}

// netDir is where people and plugins look for network namespaces; a node that
// is not the machine's only one keeps its own to itself.
func (n *node) netDir() string {
	if n.config.State == DefaultState {
		return "/run/netns"
	}
	return ""
}

// openPods opens the rooms of pods and brings the pods together with what is
// there of them.
func (n *node) openPods(ctx context.Context) (err error) {
	ready := defaultReadyPool
	if n.config.CRI.PodReadyPool != nil {
		ready = *n.config.CRI.PodReadyPool
	}
	if !n.config.CRI.On() {
		ready = 0
	}
	n.pods.namespaces, err = kernelns.Open(ctx, kernelns.Config{
		Dir: filepath.Join(n.config.State, "kernelns"), Ready: ready, NetDir: n.netDir(),
		// As Kubernetes' other runtimes have it: no capability is needed for
		// low ports and for ping.
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
		Made:    n.networks.PlugReady, Gone: n.networks.UnplugReady, Log: n.log.With("room", "kernelns"),
	})
	if err != nil {
		return err
	}
	n.onClose("namespaces of pods", n.pods.namespaces.Close)
	devices, err := bundle.OpenDevices()
	if err != nil {
		return err
	}
	if err := n.openPlugins(devices); err != nil {
		return err
	}
	if n.pods.watcher, err = seccomp.Open(ctx, seccomp.Config{
		State: n.config.State, Profiles: filepath.Join(n.config.Root, "seccomp"), Localhost: n.profileRoot(),
		Trusting: n.config.CRI.SeccompTrusting, Keeper: n.keeper, Events: n.events, Log: n.log.With("room", "seccomp"),
		Stop: func(ctx context.Context, id, reason, message string) error {
			return n.pods.set.StopFor(ctx, id, reason, message)
		},
	}); err != nil {
		return err
	}
	config := pod.Config{
		DB: n.db, State: n.config.State, Boot: n.boot,
		Runner: n.containers, Networks: n.networks, Namespaces: n.pods.namespaces, Snapshots: n.snapshots,
		Images: podImages{n.images.Space(pod.Namespace)}, Events: n.events, Runtimes: n.podRuntime, Features: n.podFeatures(),
		Seccomp: n.pods.watcher, Devices: devices,
		Restored: filepath.Join(n.config.Root, "checkpoint", "pods"), RestoreByCreate: n.config.CRI.RestoreByCreate,
		Host: n.host, CgroupParent: n.cgroup(), ProfileRoot: n.profileRoot(), DefaultSeccomp: n.config.CRI.SeccompDefault,
		Annotations: n.config.CRI.AllowedAnnotations, Log: n.log.With("room", "pod"),
	}
	if n.config.CRI.Pause != "" {
		config.Pause = []string{n.config.CRI.Pause}
	}
	if n.pods.plugins != nil {
		config.Hooks = n.pods.plugins
	}
	life := context.WithoutCancel(ctx) // as of the containers
	if n.pods.set, err = pod.Open(life, config); err != nil {
		return err
	}
	n.onClose("pods", n.pods.set.Close)
	n.bus.Tap(n.pods.set.Tell)
	return n.pods.set.Recover(ctx)
}

func (n *node) openPlugins(devices nri.Devices) (err error) {
	if e := n.config.NRI.Enabled; e != nil && !*e {
		return nil
	}
	socket := n.config.NRI.Socket
	if socket == "" && n.config.State != DefaultState {
		socket = filepath.Join(n.config.State, "nri.sock")
	}
	n.pods.plugins, err = nri.Open(nri.Config{
		Socket: socket, PluginDir: n.config.NRI.PluginDir, ConfigDir: n.config.NRI.ConfigDir,
		Request: time.Duration(n.config.NRI.RequestSeconds) * time.Second, Validator: (*nri.Validator)(n.config.NRI.Validator),
		Name: "berth", Version: n.config.Version.Version, Devices: devices, Log: n.log.With("room", "nri"),
	})
	return err
}

// runPlugins lets plugins take part, until ctx is done.
func (n *node) runPlugins(ctx context.Context) error {
	if n.pods.plugins == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return n.pods.plugins.Run(ctx, n.pods.set)
}

func (n *node) profileRoot() string {
	if root := n.config.CRI.SeccompProfileRoot; root != "" {
		return root
	}
	return defaultProfileRoot
}

// podRuntime finds the runtime that a handler of Kubernetes names: one of the
// node's by its name, or a shim.
func (n *node) podRuntime(handler string) (string, error) {
	switch {
	case handler == "":
		return container.RuntimeV2, nil
	case n.runtimes.byName[handler] != nil, handler == container.RuntimeV2, formerly[handler]:
		return handler, nil
	case strings.ContainsRune(handler, '/'): // a handler is a name: what is at a path is not to be run by it
		return "", errs.New(errs.NotFound, "there is no runtime for handler %q", handler)
	}
	if _, err := n.shims.Runtime(handler); err != nil {
		return "", errs.New(errs.NotFound, "there is no runtime for handler %q: %w", handler, err)
	}
	return handler, nil
}

// podFeatures asks each runtime what it can do, once.
func (n *node) podFeatures() pod.Features {
	var mu sync.Mutex
	known := map[string]*features.Features{}
	return func(ctx context.Context, name string) *features.Features {
		if name == container.RuntimeV2 || formerly[name] {
			name = n.runtimes.usual
		}
		mu.Lock()
		defer mu.Unlock()
		if can, ok := known[name]; ok {
			return can
		}
		says, ok := n.runtimes.byName[name].(featured)
		if !ok {
			return nil
		}
		text, err := says.Features(ctx)
		if err != nil {
			n.log.DebugContext(ctx, "a runtime does not say what it can do", "runtime", name, "err", err)
			return nil
		}
		can := &features.Features{}
		if json.Unmarshal(text, can) != nil {
			can = nil
		}
		known[name] = can
		return can
	}
}

// podImages are the images of Kubernetes as containers need them.
type podImages struct{ space *image.Space }

// Resolve implements pod.Images.
func (i podImages) Resolve(ctx context.Context, ref string) (pod.Image, error) {
	found, err := i.space.Get(ref)
	if err != nil {
		return pod.Image{}, err
	}
	layers, err := i.space.Chain(ctx, found.ID)
	if err != nil {
		return pod.Image{}, err
	}
	out := pod.Image{ID: found.ID, Ref: found.ID, Config: found.Config, Layers: layers}
	if digests := found.Digests(); len(digests) > 0 {
		out.Ref = digests[0]
	}
	if tags := found.Tags(); len(tags) > 0 {
		out.Name = tags[0]
	}
	return out, nil
}

// Annotations implements pod.Images.
func (i podImages) Annotations(ctx context.Context, ref string) (map[string]string, error) {
	return i.space.Annotations(ctx, ref)
}

// claims says whether an id is that of a container, or of a pod or a container
// of one.
func (n *node) claims(id string) bool { return n.containers.Claims(id) || n.pods.set.Claims(id) }

// podCNIConfDir is where kubelet's runtimes look for it. A node in folders of its
// own has none unless it is told.
func (n *node) podCNIConfDir() string {
	if dir := n.config.Network.CNIConfDir; dir != "" || n.config.State != DefaultState {
		return dir
	}
	return "/etc/cni/net.d"
}

// cniTimeout is how long the plugins may take for one container.
func (d NetworkDefaults) cniTimeout() time.Duration {
	return time.Duration(d.CNITimeoutSeconds) * time.Second
}

var _ interface {
	nri.Pods
	ContainersOf(pod string) []spec.PodContainer
} = (*pod.Set)(nil)
