// Package builder keeps BuildKit for those who build images: a buildkitd of
// the node's own, whose worker is the node's containerd door, so that what is
// built lies where containers start from.
//
// There is one socket for its clients, and it is there while the node is.
// buildkitd itself is started when the first one connects, or by Start, and
// inherits the socket; it is stopped when nobody has been connected for a
// while. What it knows stays in Dir.
//
// It goes on when the node dies, or ends while somebody builds, and the next
// node finds it by the file of its pid. Who connects while it is being stopped or is dead waits
// for the next one, unless the node is away too.
package builder

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// DefaultIdle is how long nobody must be connected before buildkitd is stopped.
const DefaultIdle = 10 * time.Minute

// Config is what a Builder needs.
type Config struct {
	Dir    string // of what lasts: what BuildKit knows of its cache
	State  string // of what is valid until reboot: socket, pid, log
	Worker Worker

	Server   string        // buildkitd; looked for when empty
	Client   string        // buildctl; looked for beside it when empty
	Settings string        // file of settings for BuildKit, as buildkitd.toml; none when empty
	Network  string        // of build steps: host, bridge or cni; what Settings say when empty, else host
	Idle     time.Duration // DefaultIdle when 0, never when less
	Limit    int64         // bytes that the cache may take; what Settings say when 0, else as BuildKit has it
	Group    int           // may use the socket besides root
	Mode     os.FileMode   // of the socket; 0660 when 0

	// Tidy, if set, removes containers of build steps that a buildkitd left
	// which was killed. They are below the cgroup Worker.Cgroup.
	Tidy func(context.Context) error
	Log  *slog.Logger
}

// Worker says where build steps run, and where their results go.
type Worker struct {
	Socket      string // of a containerd
	Namespace   string // there
	Snapshotter string // there
	Cgroup      string // above the cgroups of build steps
}

// Builder is the node's BuildKit. Safe for concurrent use.
type Builder struct {
	Config
	life    context.Context //nolint:containedctx // what works in the background ends with it
	stop    context.CancelFunc
	work    sync.WaitGroup
	changed chan struct{} // holds a token when Run is to look again

	turn sync.Mutex // one starts or stops it at a time

	mu      sync.Mutex
	process *process  // nil while there is none
	door    *os.File  // the socket, listening; nil while a process of an earlier node has another
	used    time.Time // when somebody was connected last, or asked for it
	stale   bool      // somebody was since it was written down what the cache takes
}

// Open finds the buildkitd of an earlier node, if it still runs, and opens the
// socket if not. Nothing is started.
func Open(ctx context.Context, c Config) (*Builder, error) {
	c.Idle = cmp.Or(c.Idle, DefaultIdle)
	c.Mode = cmp.Or(c.Mode, 0o660)
	b := &Builder{Config: c, changed: make(chan struct{}, 1), used: time.Now()}
	b.life, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	if len(b.socket()) > maxSocketPath {
		return nil, errs.New(errs.Invalid, "socket %s: the path is longer than %d bytes", b.socket(), maxSocketPath)
	}
	var err error
	if b.process, err = b.find(); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	if b.process != nil {
		b.Log.InfoContext(ctx, "buildkitd of an earlier node goes on", "pid", b.process.pid)
		return b, nil
	}
	if err := b.listen(ctx); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	return b, nil
}

// Close lets go of buildkitd, which goes on.
func (b *Builder) Close() error {
	b.stop()
	b.mu.Lock()
	if b.process != nil {
		b.process.release()
	}
	var err error
	if b.door != nil {
		err = b.door.Close()
	}
	b.mu.Unlock()
	b.work.Wait()
	return err
}

func (b *Builder) socket() string { return filepath.Join(b.State, "builder.sock") }

// hidden is what the socket is bound to, and what the kernel calls it: it gets
// its name once its rights are set.
func (b *Builder) hidden() string { return filepath.Join(b.State, "builder.new") }

func (b *Builder) logPath() string { return filepath.Join(b.State, "builder.log") }

func (b *Builder) settingsPath() string { return filepath.Join(b.State, "buildkitd.toml") }

func (b *Builder) pidFile() string { return filepath.Join(b.State, "builder.pid") }

// running is the process, nil if there is none.
func (b *Builder) running() *process {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.process != nil && b.process.isOver() {
		return nil
	}
	return b.process
}

// touch counts as a use.
func (b *Builder) touch() {
	b.mu.Lock()
	b.used, b.stale = time.Now(), true
	b.mu.Unlock()
}

// nudge has Run look again.
func (b *Builder) nudge() {
	select {
	case b.changed <- struct{}{}:
	default: // it has yet to take the last token
	}
}

// Get describes the builder. NotFound: there is no BuildKit on this machine.
func (b *Builder) Get(context.Context) (spec.Builder, error) {
	programs, err := b.programs()
	if err != nil {
		return spec.Builder{}, err
	}
	state := spec.Builder{Socket: b.socket(), Client: programs.client, Server: programs.server, Idle: -1, Log: b.logPath()}
	if b.Idle > 0 {
		state.Idle = int(b.Idle.Seconds())
	}
	if p := b.running(); p != nil {
		state.Running, state.Pid, state.Started = true, p.pid, p.started
		state.Connections, err = b.connections()
	}
	return state, err
}

// Start makes sure that buildkitd runs and answers. NotFound: there is none on
// this machine. Unavailable: it does not start; the error says why.
func (b *Builder) Start(ctx context.Context) (spec.Builder, error) {
	if err := b.ensure(ctx); err != nil {
		return spec.Builder{}, err
	}
	return b.Get(ctx)
}

// Stop ends buildkitd. It is started again when it is needed. Conflict: there
// are clients, and force is not set.
func (b *Builder) Stop(ctx context.Context, force bool) error {
	b.turn.Lock()
	defer b.turn.Unlock()
	p := b.running()
	if p == nil {
		return nil
	}
	clients, err := b.connections()
	if err != nil {
		return err
	}
	if clients == 0 {
		b.remember(ctx)
	} else if !force {
		return errs.New(errs.Conflict, "the builder is in use: somebody builds")
	}
	return b.end(ctx, p)
}

// end stops p; who connects meanwhile waits for the next. turn is held.
func (b *Builder) end(ctx context.Context, p *process) error {
	if !p.ours() {
		if err := b.listen(ctx); err != nil {
			return err
		}
	}
	err := p.end(ctx)
	b.settle(ctx, p)
	return err
}

// settle puts away what a process left that has ended. turn is held.
func (b *Builder) settle(ctx context.Context, p *process) {
	b.mu.Lock()
	if b.process != p {
		b.mu.Unlock()
		return
	}
	b.process = nil
	open := b.door != nil
	b.mu.Unlock()
	p.release()
	_ = os.Remove(b.pidFile())
	if !open {
		if err := b.listen(ctx); err != nil {
			b.Log.ErrorContext(ctx, "the builder cannot be reached", "error", err)
		}
	}
	b.tidy(ctx)
	b.nudge()
}

func (b *Builder) tidy(ctx context.Context) {
	if b.Tidy == nil {
		return
	}
	if err := b.Tidy(ctx); err != nil && ctx.Err() == nil {
		b.Log.WarnContext(ctx, "containers of build steps are left", "error", err)
	}
}
