package containerd

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	api "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/face/containerd/wire"
)

// Introspection is the introspection service. Where containerd lists the
// plug-ins that it is made of, Berth lists what clients look for among them: by
// that they choose what to ask for.
type Introspection struct {
	api.UnimplementedIntrospectionServer
	ID           string        // of the node
	Root         string        // durable state; plug-ins are said to have a folder there
	Snapshotters []Snapshotter // the usual one first
	// Runtime is the version of what runs containers of a runtime's name, and
	// what that says it can do, as the OCI runtime spec's JSON; nil for nothing.
	Runtime func(ctx context.Context, name string) (version string, features []byte, err error)
}

// featuresType is what clients call such JSON.
const featuresType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// Snapshotter is a name of a store of layers.
type Snapshotter struct {
	Name         string
	Capabilities []string
}

// Register adds the service to a server.
func (s *Introspection) Register(r grpc.ServiceRegistrar) { api.RegisterIntrospectionServer(r, s) }

// Server says who this is.
func (s *Introspection) Server(context.Context, *emptypb.Empty) (*api.ServerResponse, error) {
	answer := &api.ServerResponse{UUID: uuidOf(s.ID), Pid: uint64(os.Getpid())} //nolint:gosec // a pid is positive
	if info, err := os.Stat("/proc/self/ns/pid"); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			answer.Pidns = st.Ino
		}
	}
	return answer, nil
}

// uuidOf is a node's id in the form that clients want, the same for ever.
func uuidOf(id string) string {
	sum := sha256.Sum256([]byte("berth node " + id))
	sum[6] = sum[6]&0x0f | 0x80 // version 8: made by a rule of our own
	sum[8] = sum[8]&0x3f | 0x80
	made, err := uuid.FromBytes(sum[:16])
	if err != nil {
		return id // 16 bytes are always taken
	}
	return made.String()
}

// Plugins lists what fits any of the filters.
func (s *Introspection) Plugins(_ context.Context, r *api.PluginsRequest) (*api.PluginsResponse, error) {
	filter, err := filters.ParseAll(r.GetFilters()...)
	if err != nil {
		return nil, wire.Error(errs.New(errs.Invalid, "%w", err))
	}
	answer := &api.PluginsResponse{}
	for _, p := range s.plugins() {
		if filter.Match(adaptPlugin(p)) {
			answer.Plugins = append(answer.Plugins, p)
		}
	}
	return answer, nil
}

func adaptPlugin(p *api.Plugin) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch strings.Join(path, ".") {
		case "type":
			return p.GetType(), p.GetType() != ""
		case "id":
			return p.GetID(), p.GetID() != ""
		}
		return "", false
	})
}

const (
	runtimeType     = "io.containerd.runtime.v2"
	snapshotterType = "io.containerd.snapshotter.v1"
)

// plugins are what Berth has of containerd's plug-ins.
func (s *Introspection) plugins() []*api.Plugin {
	here := []*types.Platform{{OS: runtime.GOOS, Architecture: runtime.GOARCH, Variant: variant()}}
	all := []*api.Plugin{
		{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": filepath.Join(s.Root, "blobs")}},
		{Type: runtimeType, ID: "task", Platforms: here},
		{Type: "io.containerd.differ.v1", ID: "walking", Platforms: here},
		{Type: "io.containerd.metadata.v1", ID: "bolt", Capabilities: []string{"content-sharing"}, Exports: map[string]string{"policy": "shared"}},
		{Type: "io.containerd.gc.v1", ID: "scheduler"},
		{Type: "io.containerd.lease.v1", ID: "manager"},
		{Type: "io.containerd.event.v1", ID: "exchange"},
		{Type: "io.containerd.internal.v1", ID: "restart", Capabilities: []string{"no", "always", "on-failure", "unless-stopped"}},
		{Type: "io.containerd.internal.v1", ID: "opt", Exports: map[string]string{"path": filepath.Join(s.Root, "opt")}},
		{Type: "io.containerd.streaming.v1", ID: "manager"},
		{Type: "io.containerd.transfer.v1", ID: "local"},
		{Type: "io.containerd.mount-manager.v1", ID: "bolt"},
		{Type: "io.containerd.sandbox.store.v1", ID: "local"},
		{Type: "io.containerd.sandbox.controller.v1", ID: "shim"},
	}
	for _, name := range s.Snapshotters {
		all = append(all, &api.Plugin{
			Type: snapshotterType, ID: name.Name, Platforms: here, Capabilities: name.Capabilities,
			Exports: map[string]string{"root": filepath.Join(s.Root, "snapshotter", name.Name)},
		})
	}
	for _, service := range []string{
		"containers", "content", "diff", "events", "healthcheck", "images", "introspection", "leases", "mounts",
		"namespaces", "sandbox-controllers", "sandboxes", "snapshots", "streaming", "tasks", "transfer", "version",
	} {
		all = append(all, &api.Plugin{Type: "io.containerd.grpc.v1", ID: service})
	}
	return all
}

// variant is what images call this kind of processor besides its architecture.
func variant() string {
	if runtime.GOARCH == "arm64" {
		return "v8"
	}
	return ""
}

// PluginInfo says more about one of them: of the runtime, which program runs
// containers of a name.
func (s *Introspection) PluginInfo(ctx context.Context, r *api.PluginInfoRequest) (*api.PluginInfoResponse, error) {
	answer := &api.PluginInfoResponse{}
	for _, p := range s.plugins() {
		if p.GetType() == r.GetType() && p.GetID() == r.GetID() {
			answer.Plugin = p
		}
	}
	switch {
	case answer.GetPlugin() == nil:
		return nil, wire.Error(errs.New(errs.NotFound, "plugin %s.%s not found", r.GetType(), r.GetID()))
	case r.GetOptions() == nil:
		return answer, nil
	case r.GetType() != runtimeType:
		return nil, wire.Error(errs.New(errs.Unsupported, "plugin does not provide extra information"))
	}
	asked := &types.RuntimeRequest{}
	if err := proto.Unmarshal(r.GetOptions().GetValue(), asked); err != nil {
		return nil, wire.Error(errs.New(errs.Invalid, "options of plugin %s: %w", r.GetID(), err))
	}
	version, features, err := s.Runtime(ctx, asked.GetRuntimePath())
	if err != nil {
		return nil, wire.Error(err)
	}
	info := &types.RuntimeInfo{
		Name: asked.GetRuntimePath(), Version: &types.RuntimeVersion{Version: version}, Options: asked.GetOptions(),
	}
	if features != nil {
		info.Features = &anypb.Any{TypeUrl: featuresType, Value: features}
	}
	answer.Extra, err = wire.Pack(info)
	if err != nil {
		return nil, wire.Error(err)
	}
	return answer, nil
}
