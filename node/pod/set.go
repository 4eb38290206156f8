package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/base/group"
	"berth/base/kv"
	"berth/node/bundle"
	"berth/spec"
)

// Config is what a Set stands on.
type Config struct {
	DB    *kv.DB
	State string // folder that is empty after a reboot; "pods" below it is the Set's
	Boot  string // which boot this is

	Runner     Containers
	Networks   Networks
	Namespaces Namespaces
	Snapshots  Snapshots
	Images     Images
	Events     Events
	Runtimes   Runtimes
	Features   Features
	Seccomp    Seccomp // may be nil
	Hooks      Hooks   // may be nil
	Devices    Devices // may be nil

	Host bundle.Host
	// CgroupParent is where containers of pods are that name no parent.
	CgroupParent string
	// ProfileRoot is where localhost seccomp profiles with a relative name are.
	ProfileRoot string
	// Annotations are names, or patterns of them, of annotations of pods and
	// containers that runtimes may see.
	Annotations []string
	// DefaultSeccomp: containers that name no seccomp profile have the default
	// one.
	DefaultSeccomp bool
	// Pause is the program that runs in a PID namespace that a pod's containers
	// share; "" for the Set's own.
	Pause []string
	// Snapshotter is what clients of containerd call Snapshots.
	Snapshotter string
	// Restored is where the parts of checkpoints are that containers will go on
	// from.
	Restored string
	// RestoreByCreate: CreateContainer takes a checkpoint for an image.
	RestoreByCreate bool
	// Timeout bounds each call's own work; 4 minutes when 0.
	Timeout time.Duration

	Log *slog.Logger
}

// Set is the pods of one node.
type Set struct {
	Config
	db records

	life       context.Context //nolint:containedctx // what the Set does by itself ends with it
	end        context.CancelFunc
	background group.Background
	traces     traces

	mu         sync.RWMutex
	pods       map[string]*pod    // by id; those in the making too
	names      map[name]*pod      // likewise
	containers map[string]*member // by id; those in the making too
	strays     []string           // folders without a record

	spoiled chan struct{} // holds a token when a call has failed, and may have left something
}

// name is what makes a pod unique besides its id.
type name struct {
	namespace, name, uid string
	attempt              uint32
}

func nameOf(c *spec.PodConfig) name { return name{c.Namespace, c.Name, c.UID, c.Attempt} }

// Open reads the records of the node's pods. Recover has to come next. ctx is
// the Set's life; pods go on after it.
func Open(ctx context.Context, config Config) (*Set, error) {
	s := &Set{
		Config:     config,
		db:         records{DB: config.DB, dir: filepath.Join(config.State, "pods"), boot: config.Boot, log: config.Log},
		pods:       map[string]*pod{},
		names:      map[name]*pod{},
		containers: map[string]*member{},
		spoiled:    make(chan struct{}, 1),
	}
	if s.Timeout == 0 {
		s.Timeout = defaultTimeout
	}
	s.life, s.end = context.WithCancel(ctx)
	s.traces.init(&s.db)
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("read the records of pods: %w", err)
	}
	return s, nil
}

// defaultTimeout is longer than what the slowest steps may take by themselves,
// a network plugin and a kill among them.
const defaultTimeout = 4 * time.Minute

// Close ends what the Set does by itself and waits for it. The pods go on.
func (s *Set) Close() error {
	s.end()
	s.background.Close()
	return nil
}

// Key is how the room container knows a container of a pod.
func Key(id string) string { return Namespace + "+" + id }

// Claims reports whether id, or Key of it, is that of a pod or of one of its
// containers, be it only in the making.
func (s *Set) Claims(id string) bool {
	id = strings.TrimPrefix(id, Namespace+"+")
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pods[id] != nil || s.containers[id] != nil
}

// find looks a pod up that is there for others to see, by its id or a beginning
// of it that only one has.
func (s *Set) find(id string) (*pod, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, err := lookUp("pod", id, s.pods, func(p *pod) bool { return p.seen() })
	return p, err
}

func (s *Set) findContainer(id string) (*member, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return lookUp("container", id, s.containers, func(c *member) bool { return c.seen() })
}

func lookUp[T any](what, id string, all map[string]*T, seen func(*T) bool) (*T, error) {
	if id == "" {
		return nil, errs.New(errs.Invalid, "the id of a %s is needed", what)
	}
	if one := all[id]; one != nil && seen(one) {
		return one, nil
	}
	var found *T
	for whole, one := range all {
		if !strings.HasPrefix(whole, id) || !seen(one) {
			continue
		}
		if found != nil {
			return nil, errs.New(errs.Conflict, "%q is the beginning of several ids", id)
		}
		found = one
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "no such %s: %s", what, id)
	}
	return found, nil
}

// publish tells of something that happened to a pod.
func (s *Set) publish(p *spec.Pod, action string) {
	s.Events.Publish("pod", action, p.ID, map[string]string{
		"name": p.Config.Name, "namespace": p.Config.Namespace, "uid": p.Config.UID,
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}
