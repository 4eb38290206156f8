package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/face/containerd"
	"berth/face/cri"
	"berth/face/cri/images"
	usage "berth/face/cri/metrics"
	"berth/face/cri/streaming"
	"berth/image/reference"
	"berth/node/image"
	"berth/node/network"
	"berth/node/pod"
)

// kubernetes is what the node has for the clients of the CRI.
type kubernetes struct {
	server  *cri.Server // nil where none is served
	images  *images.Service
	streams *streaming.Server
	meter   *usage.Service // also where none is served
}

// openCRI makes the door for Kubernetes.
func (n *node) openCRI(ctx context.Context) (err error) {
	c, log := n.config.CRI, n.log.With("room", "cri")
	n.images.SetUsers(n.imageUsers)
	n.cri.meter = usage.New(ctx, usage.Config{Pods: n.pods.set, Layers: n.snapshots, Meter: n.engine.meter, Root: n.config.Root, Log: log})
	n.onClose("statistics of pods", n.cri.meter.Close)
	if !c.On() {
		return nil
	}
	certificate, err := c.certificate()
	if err != nil {
		return err
	}
	streaming.LeadLog(log)
	n.cri.streams, err = streaming.Open(ctx, streaming.Config{
		Addr: cmp.Or(c.StreamAddr, "127.0.0.1:0"), TLS: certificate,
		Containers: streaming.Of(n.containers), Pods: n.pods.set, Ref: pod.Key, Dial: network.Dial, Log: log,
	})
	if err != nil {
		return err
	}
	space := n.images.Space(pod.Namespace)
	n.cri.images = images.New(images.Config{
		Images: space, Disk: n.images, Path: n.config.Root, Pinned: c.isPinned, Patience: c.patience(), Log: log,
		Handler: func(name string) error { _, err := n.podRuntime(name); return err },
	})
	n.cri.server = cri.New(cri.Config{
		Pods: n.pods.set, Containers: n.pods.set, Images: podNames{space}, Streams: n.cri.streams,
		Meter: n.cri.meter, Network: n.networks, Node: n.kubeNode(ctx), Log: log,
	})
	n.bus.Tap(n.cri.server.Tell)
	return nil
}

// runCRI tells clients what happens, and serves streams.
func (n *node) runCRI(ctx context.Context) error {
	if n.cri.server == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return n.cri.server.Run(ctx)
}

func (n *node) runStreams(ctx context.Context) error {
	if n.cri.streams == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return n.cri.streams.Run(ctx)
}

// kubeServices are those of the CRI.
func (n *node) kubeServices() []containerd.Service {
	if n.cri.server == nil {
		return nil
	}
	return []containerd.Service{n.cri.server, n.cri.images}
}

// defaultPatience is how long nothing may come of a pull.
const defaultPatience = 5 * time.Minute

func (d CRIDefaults) patience() time.Duration {
	if d.PullStallSeconds > 0 {
		return time.Duration(d.PullStallSeconds) * time.Second
	}
	return defaultPatience
}

// certificate is for streams; nil where they are not to be encrypted.
func (d CRIDefaults) certificate() (*tls.Config, error) {
	if d.StreamTLSCert == "" && d.StreamTLSKey == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(d.StreamTLSCert, d.StreamTLSKey)
	if err != nil {
		return nil, errs.New(errs.Invalid, "configuration: [cri] stream_tls_cert and stream_tls_key: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// isPinned says whether the configuration wants an image of that name to stay
// when disk is wanted.
func (d CRIDefaults) isPinned(name string) bool {
	full := name
	if parsed, err := reference.Parse(name); err == nil {
		full = parsed.String()
	}
	return slices.ContainsFunc(d.PinnedImages, func(pattern string) bool {
		if fits, err := path.Match(pattern, full); fits && err == nil || pattern == name {
			return true
		}
		parsed, err := reference.Parse(pattern)
		return err == nil && parsed.String() == full
	})
}

// imageUsers lists the containers that are made of an image.
func (n *node) imageUsers(image string) []string {
	return append(n.containers.Users(image), n.pods.set.ImageUsers(image)...)
}

// podNames are what people call the images of pods.
type podNames struct{ space *image.Space }

// NameOf implements cri.Images.
func (p podNames) NameOf(id, wanted string) string {
	found, err := p.space.Get(id)
	if err != nil {
		return ""
	}
	tags := found.Tags()
	if parsed, err := reference.Parse(wanted); err == nil && slices.Contains(tags, parsed.String()) {
		return parsed.String()
	}
	for _, names := range [][]string{tags, found.Digests()} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return ""
}

// kubeNode says what this machine is and can do.
type kubeNode struct {
	node     *node
	handlers func() []cri.Handler
}

// kubeNode asks each program what it can do, once, when that is wanted.
func (n *node) kubeNode(ctx context.Context) kubeNode {
	return kubeNode{n, sync.OnceValue(func() []cri.Handler { return n.findHandlers(ctx) })}
}

// Version implements cri.Node.
func (k kubeNode) Version() string { return kubeVersion(k.node.config.Version.Version) }

// kubeVersion is a version as kubelet reads it, by semver.org: of any other it
// would tell the cluster that it is unknown.
func kubeVersion(version string) string {
	bare := strings.TrimPrefix(version, "v")
	var major, minor, patch int
	if n, _ := fmt.Sscanf(bare, "%d.%d.%d", &major, &minor, &patch); n == 3 {
		return bare
	}
	return "0.0.0-" + bare
}

// Ready implements cri.Node: what is needed was there when the node started.
func (k kubeNode) Ready(context.Context) error { return nil }

// Handlers implements cri.Node.
func (k kubeNode) Handlers(context.Context) []cri.Handler { return k.handlers() }

// Features implements cri.Node. Containers with a user namespace on the node's
// network get the node's /sys, read-only.
func (k kubeNode) Features() cri.Features {
	return cri.Features{UserNamespacesOnHostNetwork: k.handlers()[0].UserNamespaces}
}

// Config implements cri.Node.
func (k kubeNode) Config() map[string]any {
	c := k.node.config
	return map[string]any{
		"root": c.Root, "state": c.State, "socket": c.Socket,
		// Tools look here for the file system that containers are on.
		"rootDir": filepath.Join(c.Root, "cri"), "stateDir": filepath.Join(c.Root, "cri"),
		"snapshotter": k.node.storage.name, "runtime": k.node.runtimes.usual,
		"cniConfDir": k.node.podCNIConfDir(), "cniBinDir": c.Network.CNIBinDir, "podNetwork": c.Network.PodNetwork,
		"seccompProfileRoot": k.node.profileRoot(), "nri": k.node.pods.plugins != nil,
		"pinnedImages": c.CRI.PinnedImages, "pullStallSeconds": int(c.CRI.patience() / time.Second),
		"cgroupDriver": "cgroupfs", "apparmor": k.node.host.AppArmor, "seccomp": k.node.host.Seccomp, "userNamespaces": k.node.host.UserNS,
	}
}

// findHandlers lists the runtimes, the usual one under no name first.
func (n *node) findHandlers(ctx context.Context) []cri.Handler {
	usual := n.findHandler(ctx, n.runtimes.usual)
	usual.Name = ""
	handlers := []cri.Handler{usual}
	for _, name := range n.runtimes.names() {
		handlers = append(handlers, n.findHandler(ctx, name))
	}
	return handlers
}

// findHandler asks a program. One that does not say what it can do can nothing.
func (n *node) findHandler(ctx context.Context, name string) cri.Handler {
	h := cri.Handler{Name: name}
	says, ok := n.runtimes.byName[name].(featured)
	if !ok {
		return h
	}
	text, err := says.Features(ctx)
	var can features.Features
	if err == nil {
		err = json.Unmarshal(text, &can)
	}
	if err != nil {
		n.log.DebugContext(ctx, "a runtime does not say what it can do", "runtime", name, "err", err)
		return h
	}
	h.RecursiveReadOnly = slices.Contains(can.MountOptions, "rro") && setsAttributes()
	l := can.Linux
	h.UserNamespaces = n.host.UserNS && l != nil && l.MountExtensions != nil && l.MountExtensions.IDMap != nil &&
		l.MountExtensions.IDMap.Enabled != nil && *l.MountExtensions.IDMap.Enabled
	return h
}

// setsAttributes says whether the kernel can change a whole tree of mounts.
func setsAttributes() bool {
	err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{})
	return err != unix.ENOSYS
}
