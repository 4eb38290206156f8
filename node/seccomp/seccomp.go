// Package seccomp watches the system calls of containers: it answers those
// that their profile forbids, counts them, stops who makes them where that is
// asked for, and records what a container needs as a profile of its own.
//
// Whose calls are watched, and what follows, is said by an annotation of the
// pod, or of the container; with "/" and a container's name behind it, it means
// that container only:
//
//	seccomp-notifier-action.crio.io, io.kubernetes.cri-o.seccompNotifierAction
//	    stop         forbidden calls fail and are counted; 5 s after the last
//	                 one that is new the container is stopped
//	    else         forbidden calls fail and are counted
//	seccomp-notifier-action.berth.io
//	    stop, deny   the same
//	    audit        forbidden calls are counted, and go through
//	    record       what is used becomes a profile; forbidden calls fail
//	    record=FILE  and the profile is kept in FILE, below the folder of
//	                 localhost profiles
//
// The last one of audit and record=FILE reach beyond their pod: the first lifts
// its profile, the second writes what others may run under. They need
// Config.Trusting.
//
// # How
//
// A rule of the profile that forbids becomes one that asks, and so does every
// call that the profile does not name if it forbids these. (A call that it
// allows for certain arguments only is still refused by the kernel for all
// others; nobody hears of that.) The kernel asks through a descriptor, which
// the OCI runtime sends to the Watcher's socket after it has loaded the filter.
// Until then nobody answers, so what a runtime does in between is never asked
// about; nor is write, by which runc tells of the descriptor.
//
// Copies of the descriptors are in the keeper: a call that is made while there
// is no node waits for the next one, instead of failing.
//
//	<state>/seccomp/notify.sock  where runtimes send descriptors
//	<state>/seccomp/<id>.json    what is watched; <id>.seen: what it did
//	<profiles>/<namespace>_<pod>_<container>.json  what was recorded
package seccomp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// Config is what a Watcher stands on.
type Config struct {
	State     string // folder that is empty after a reboot; "seccomp" below it is the Watcher's
	Profiles  string // folder for recorded profiles
	Localhost string // folder of localhost profiles
	// Trusting: annotations may lift profiles and write below Localhost.
	Trusting bool
	// Grace is how long after the last new call a container is stopped; 5 s
	// when 0.
	Grace time.Duration

	Keeper Keeper // nil: descriptors end with the node
	Stop   Stop
	Events Events
	Log    *slog.Logger
}

// Keeper keeps descriptors while there is no node; a keeper.Keeper is one.
type Keeper interface {
	Hold(ctx context.Context, name string, files ...*os.File) error
	// Held is what is held; the files are the caller's to close.
	Held() (map[string][]*os.File, error)
	Drop(ctx context.Context, name string) error
}

// Stop ends a container at once; reason and message are what its status says.
type Stop func(ctx context.Context, container, reason, message string) error

// ReasonKilled is the reason of a container's end that Stop is given.
const ReasonKilled = "seccomp killed"

// Events is told what happens.
type Events interface {
	Publish(kind, action, id string, attrs map[string]string)
}

// Watcher watches containers.
type Watcher struct {
	config Config
	table  table
	socket *net.UnixListener
	stops  chan string
	served sync.WaitGroup // connections and listeners

	mu      sync.Mutex
	watched map[string]*watched // by container
	waiting []*listener         // for Run
	running context.Context     //nolint:containedctx // Run's; nil while it does not run

	profiles sync.Mutex // one writes recorded profiles at a time
}

// Count says how often a container made a call that its profile forbids.
type Count struct {
	Container string // id
	Name      string // "<namespace>/<pod>/<container>"
	Syscall   string
	Calls     uint64
}

// Open takes up again what is watched already.
func Open(ctx context.Context, config Config) (*Watcher, error) {
	if config.Grace == 0 {
		config.Grace = 5 * time.Second
	}
	names, err := readTable()
	if err != nil {
		return nil, err
	}
	w := &Watcher{config: config, table: names, stops: make(chan string, 16), watched: map[string]*watched{}}
	if err := os.MkdirAll(w.dir(), 0o700); err != nil {
		return nil, err
	}
	if err := w.load(ctx); err != nil {
		return nil, err
	}
	if w.socket, err = listen(ctx, w.socketPath()); err != nil {
		return nil, errs.New(errs.Internal, "seccomp socket: %w", err)
	}
	return w, nil
}

func (w *Watcher) dir() string        { return filepath.Join(w.config.State, "seccomp") }
func (w *Watcher) socketPath() string { return filepath.Join(w.dir(), "notify.sock") }

// Run answers the kernel until ctx is done. What is watched stays so.
func (w *Watcher) Run(ctx context.Context) error {
	w.mu.Lock()
	w.running = ctx
	for _, l := range w.waiting {
		w.serve(l)
	}
	w.waiting = nil
	w.mu.Unlock()

	w.served.Go(func() { w.accept(ctx) })
	defer w.served.Wait()
	defer w.socket.Close()
	defer context.AfterFunc(ctx, func() { w.socket.Close() })()
	for {
		select {
		case <-ctx.Done():
			w.saveAll(ctx)
			return ctx.Err()
		case container := <-w.stops:
			w.served.Go(func() { w.stop(ctx, container) })
		}
	}
}

// Watch makes ready for a container's start, and gives the profile that it
// needs then: profile itself where no annotation asks for anything. profile is
// nil for an unconfined container, which only a recording watches.
func (w *Watcher) Watch(ctx context.Context, pod spec.Pod, c spec.PodContainer, profile *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	order, err := orderFor(pod, c)
	if err != nil {
		return nil, err
	}
	if order.mode == "" || profile == nil && order.mode != record {
		return profile, nil
	}
	if !w.config.Trusting && (order.mode == audit || order.file != "") {
		return nil, errs.New(errs.Denied, "seccomp notifier: %s reaches beyond its pod, and this node does not allow it", order)
	}
	if order.file != "" && (w.config.Localhost == "" || !filepath.IsLocal(order.file)) {
		return nil, errs.New(errs.Invalid, "seccomp notifier: file %q is not below the folder of profiles", order.file)
	}
	if profile != nil && profile.ListenerPath != "" {
		return nil, errs.New(errs.Invalid, "seccomp notifier: the profile has a listener of its own")
	}
	rewritten := w.rewrite(order.mode, profile)
	rewritten.ListenerPath, rewritten.ListenerMetadata = w.socketPath(), c.ID
	seen := newWatched(saved{
		Container: c.ID, Pod: pod.ID, Name: strings.Join([]string{pod.Config.Namespace, pod.Config.Name, c.Config.Name}, "/"),
		Mode: order.mode, File: order.file, Profile: profile,
	})
	if err := w.save(seen); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watched[c.ID] = seen
	return rewritten, nil
}

// Unwatch forgets a container that has gone; a recorded profile stays.
func (w *Watcher) Unwatch(ctx context.Context, container string) error {
	w.mu.Lock()
	seen := w.watched[container]
	delete(w.watched, container)
	w.mu.Unlock()
	if seen == nil {
		return nil
	}
	seen.close()
	w.keepProfile(ctx, seen)
	return errors.Join(ignoreMissing(os.Remove(w.file(container))), ignoreMissing(os.Remove(w.seenFile(container))))
}

// Counts are the forbidden calls of containers that are watched, by name and
// call.
func (w *Watcher) Counts() []Count {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Count
	for _, seen := range w.watched {
		all = append(all, seen.counts()...)
	}
	slices.SortFunc(all, func(a, b Count) int {
		return strings.Compare(a.Name+" "+a.Syscall+" "+a.Container, b.Name+" "+b.Syscall+" "+b.Container)
	})
	return all
}
