// Package nri lets plugins take part in the lives of pods and containers, by
// the Node Resource Interface.
//
// Plugins are those that the node starts from a folder and those that connect
// to a socket at any time. Each is told first what there is, and then every
// step of every pod. None is left out: what was told to the plugins that were
// there is, from that moment on, part of what a new one is told first.
//
// A plugin that does not answer in time, or goes away, is dropped; the step
// goes on without it. The library asks plugins about one step after the other,
// so a plugin that hangs holds up all pods, once, for as long as it has to
// answer.
//
// Locks, in their order: the library's block of new plugins, the library's own,
// Plugins.mu. None of them is held while a container is changed or stopped.
package nri

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// Config says where plugins come from.
type Config struct {
	Socket    string // where plugins connect; "" for DefaultSocket
	PluginDir string // of programs that the node starts; "" for DefaultPluginDir
	ConfigDir string // of their configurations; "" for DefaultConfigDir
	// Registration and Request are the times that a plugin has to introduce
	// itself and to answer; 0 for the usual ones. They hold for the process.
	Registration, Request time.Duration
	// Validator is what plugins may not do; nil for no such rules.
	Validator *Validator

	Name, Version string // of the program that plugins are told they talk to
	Devices       Devices
	Log           *slog.Logger
}

// The usual places, as other runtimes have them.
const (
	DefaultSocket    = adaptation.DefaultSocketPath
	DefaultPluginDir = adaptation.DefaultPluginPath
	DefaultConfigDir = adaptation.DefaultPluginConfigPath
)

// DefaultRequest is a little more than other runtimes give: a plugin that takes
// two seconds to look at what there is shall not be lost for it.
const DefaultRequest = 3 * time.Second

// Validator is what plugins may not change, and which of them there must be.
type Validator struct {
	RejectHooks             bool // of the OCI runtime
	RejectDefaultSeccomp    bool // in place of the runtime's default
	RejectUnconfinedSeccomp bool // of containers that asked for none
	RejectLocalhostSeccomp  bool // in place of one's own
	RejectNamespaces        bool
	RejectSysctls           bool
	// Required are plugins without which no container is created, but those
	// with the annotation Tolerate.
	Required []string
	Tolerate string
}

// Pods are the pods that plugins hear of; a pod.Set is one.
type Pods interface {
	Pods() []spec.Pod
	Containers() []spec.PodContainer
	// ContainerSpec is the OCI spec of a container as it runs, or will run.
	ContainerSpec(ctx context.Context, container string) (*specs.Spec, error)
	// AdjustContainer changes limits of a container because a plugin asks for
	// it; no plugin is asked about that again. What limits leaves out stays.
	AdjustContainer(ctx context.Context, container string, limits *specs.LinuxResources) error
	// StopContainer ends a container that a plugin evicts.
	StopContainer(ctx context.Context, container string, timeout time.Duration) error
}

// Devices puts CDI devices, named vendor.com/class=name, into a spec.
type Devices interface {
	Inject(s *specs.Spec, names []string) error
}

// Plugins are the plugins of a node.
type Plugins struct {
	config Config
	count  atomic.Int64 // of plugins that are there, built-in ones too
	asked  chan []*api.ContainerUpdate

	mu       sync.Mutex
	library  *adaptation.Adaptation
	pods     Pods // nil before Run
	stages   map[string]stage
	unlisted map[string]unlisted
}

// Open makes ready for plugins. None is there before Run.
func Open(config Config) (*Plugins, error) {
	setDefault(&config.Socket, DefaultSocket)
	setDefault(&config.PluginDir, DefaultPluginDir)
	setDefault(&config.ConfigDir, DefaultConfigDir)
	if config.Request == 0 {
		config.Request = DefaultRequest
	}
	if config.Registration == 0 {
		config.Registration = adaptation.DefaultPluginRegistrationTimeout
	}
	p := &Plugins{
		config: config, asked: make(chan []*api.ContainerUpdate, 16),
		stages: map[string]stage{}, unlisted: map[string]unlisted{},
	}
	keepLog(config.Log)
	adaptation.SetPluginRegistrationTimeout(config.Registration)
	adaptation.SetPluginRequestTimeout(config.Request)
	var err error
	p.library, err = p.newLibrary(config.PluginDir)
	return p, err
}

func setDefault(s *string, usual string) {
	if *s == "" {
		*s = usual
	}
}

// newLibrary makes the library's part; its programs come from dir.
func (p *Plugins) newLibrary(dir string) (*adaptation.Adaptation, error) {
	options := []adaptation.Option{
		adaptation.WithSocketPath(p.config.Socket),
		adaptation.WithPluginPath(dir),
		adaptation.WithPluginConfigPath(p.config.ConfigDir),
		adaptation.WithMetrics(counter{p}),
	}
	if v := p.config.Validator; v != nil {
		options = append(options, adaptation.WithDefaultValidator(&validator.DefaultValidatorConfig{
			Enable:                                true,
			RejectOCIHookAdjustment:               v.RejectHooks,
			RejectRuntimeDefaultSeccompAdjustment: v.RejectDefaultSeccomp,
			RejectUnconfinedSeccompAdjustment:     v.RejectUnconfinedSeccomp,
			RejectCustomSeccompAdjustment:         v.RejectLocalhostSeccomp,
			RejectNamespaceAdjustment:             v.RejectNamespaces,
			RejectSysctlAdjustment:                v.RejectSysctls,
			RequiredPlugins:                       v.Required,
			TolerateMissingAnnotation:             v.Tolerate,
		}))
	}
	library, err := adaptation.New(p.config.Name, p.config.Version, p.synchronize, p.unsolicited, options...)
	if err != nil {
		return nil, fmt.Errorf("nri: %w", err)
	}
	return library, nil
}

// Run starts the plugins of PluginDir and takes connections until ctx is done.
// A folder that cannot be read as one of plugins costs no more than these.
func (p *Plugins) Run(ctx context.Context, pods Pods) error {
	p.mu.Lock()
	p.pods = pods
	p.mu.Unlock()
	p.recall()
	if err := p.start(ctx); err != nil {
		return err
	}
	defer func() { p.current().Stop() }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case updates := <-p.asked:
			p.apply(ctx, updates)
		}
	}
}

func (p *Plugins) start(ctx context.Context) error {
	err := p.current().Start()
	if err == nil {
		return p.guard()
	}
	p.config.Log.ErrorContext(ctx, "plugins are not started from their folder", "folder", p.config.PluginDir, "err", err)
	p.current().Stop()
	library, err := p.newLibrary("/nonexistent")
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.library = library
	p.mu.Unlock()
	if err := library.Start(); err != nil {
		return errs.New(errs.Internal, "nri: %w", err)
	}
	return p.guard()
}

// guard keeps everybody but root from the socket: a plugin can have any program
// run on the machine. The library leaves that to the umask.
func (p *Plugins) guard() error {
	if err := os.Chmod(p.config.Socket, 0o600); err != nil {
		return errs.New(errs.Internal, "nri: %w", err)
	}
	return nil
}

func (p *Plugins) current() *adaptation.Adaptation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.library
}

// Count is how many plugins there are, built-in ones too.
func (p *Plugins) Count() int { return int(p.count.Load()) }

// counter hears from the library how many plugins there are: before it lets
// the next step pass.
type counter struct{ *Plugins }

func (c counter) UpdatePluginCount(n int) { c.count.Store(int64(n)) }

func (c counter) RecordPluginInvocation(string, string, error)                              {}
func (c counter) RecordPluginLatency(string, string, time.Duration)                         {}
func (c counter) RecordPluginAdjustments(_, _ string, _ *api.ContainerAdjustment, _, _ int) {}
