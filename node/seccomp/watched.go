package seccomp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// saved is what is known of a container from the beginning. It outlives the
// node, as seen does.
type saved struct {
	Container string              `json:"container"`
	Pod       string              `json:"pod"`
	Name      string              `json:"name"`
	Mode      mode                `json:"mode"`
	File      string              `json:"file,omitempty"`
	Profile   *specs.LinuxSeccomp `json:"profile,omitempty"`
}

// seen is what it did.
type seen struct {
	Forbidden map[string]uint64 `json:"forbidden,omitempty"` // calls to how many
	Used      map[string]bool   `json:"used,omitempty"`      // calls of a recording
}

// watched is a container whose calls are watched.
type watched struct {
	saved
	mu sync.Mutex
	seen
	told  map[string]time.Time // when the last event of a call was
	grace *time.Timer          // until it is stopped; nil while there is no reason
	holds int                  // names given to listeners
	live  map[*listener]bool
	gone  bool
}

func newWatched(s saved) *watched {
	return &watched{
		saved: s, seen: seen{Forbidden: map[string]uint64{}, Used: map[string]bool{}},
		told: map[string]time.Time{}, live: map[*listener]bool{},
	}
}

// close ends what is done for the container.
func (c *watched) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	if c.grace != nil {
		c.grace.Stop()
	}
	for l := range c.live {
		l.close()
	}
}

// counts of what was forbidden.
func (c *watched) counts() []Count {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Count
	for name, calls := range c.Forbidden {
		all = append(all, Count{Container: c.Container, Name: c.Name, Syscall: name, Calls: calls})
	}
	return all
}

// message is the one of a container that is stopped, as CRI-O has it.
func (c *watched) message() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var calls []string
	for _, name := range slices.Sorted(maps.Keys(c.Forbidden)) {
		calls = append(calls, fmt.Sprintf("%s (%dx)", name, c.Forbidden[name]))
	}
	return "Used forbidden syscalls: " + strings.Join(calls, ", ")
}

// eventGap is how far apart events of the same call are at least.
const eventGap = time.Second

// exactly is how many calls of one name are written down each as it comes. Of a
// flood of them it is enough to know it is one: a moment's are lost with a node
// that is killed.
const exactly = 100

// forbidden notes a call that the profile does not allow.
func (w *Watcher) forbidden(ctx context.Context, c *watched, name string) {
	c.mu.Lock()
	c.Forbidden[name]++
	calls := c.Forbidden[name]
	first, tell := calls == 1, time.Since(c.told[name]) >= eventGap
	if tell {
		c.told[name] = time.Now()
	}
	c.mu.Unlock()
	if first {
		w.config.Log.WarnContext(ctx, "forbidden system call", "container", c.Container, "name", c.Name, "syscall", name, "mode", string(c.Mode))
		if c.Mode == stop {
			w.stopLater(c)
		}
	}
	if calls <= exactly || tell {
		w.keep(ctx, c)
	}
	if tell {
		w.config.Events.Publish("container", "seccomp", c.Container, map[string]string{
			"name": c.Name, "pod": c.Pod, "syscall": name, "mode": string(c.Mode), "count": strconv.FormatUint(calls, 10),
		})
	}
}

// used notes a call for a recording.
func (w *Watcher) used(ctx context.Context, c *watched, name string) {
	c.mu.Lock()
	known := c.Used[name]
	c.Used[name] = true
	c.mu.Unlock()
	if !known {
		w.keep(ctx, c)
	}
}

// stopLater has a container stopped when no call that is new has come for a
// while.
func (w *Watcher) stopLater(c *watched) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return
	}
	if c.grace != nil {
		c.grace.Stop()
	}
	c.grace = time.AfterFunc(w.config.Grace, func() {
		select {
		case w.stops <- c.Container:
		default: // so many at once; the next call that is new asks again
			w.config.Log.Error("container is not stopped: too many are", "container", c.Container)
		}
	})
}

func (w *Watcher) stop(ctx context.Context, container string) {
	c := w.find(container)
	if c == nil {
		return
	}
	if err := w.config.Stop(ctx, container, ReasonKilled, c.message()); err != nil {
		w.config.Log.ErrorContext(ctx, "stop a container that used forbidden system calls", "container", container, "err", err)
	}
}

func (w *Watcher) find(container string) *watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.watched[container]
}

func (w *Watcher) file(container string) string { return filepath.Join(w.dir(), container+".json") }
func (w *Watcher) seenFile(container string) string {
	return filepath.Join(w.dir(), container+".seen")
}

// save writes what is known of a container.
func (w *Watcher) save(c *watched) error {
	text, err := json.Marshal(c.saved)
	if err != nil {
		return err
	}
	return replace(w.file(c.Container), text)
}

// saveSeen writes what it did.
func (w *Watcher) saveSeen(c *watched) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, err := json.Marshal(c.seen)
	if err != nil || c.gone {
		return err
	}
	return replace(w.seenFile(c.Container), text)
}

// keep is saveSeen for what has happened already.
func (w *Watcher) keep(ctx context.Context, c *watched) {
	if err := w.saveSeen(c); err != nil {
		w.config.Log.WarnContext(ctx, "what seccomp saw is lost if the node ends", "container", c.Container, "err", err)
	}
}

func (w *Watcher) saveAll(ctx context.Context) {
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.watched))
	w.mu.Unlock()
	for _, c := range all {
		w.keep(ctx, c)
		w.keepProfile(ctx, c)
	}
}

// replace writes a file that is whole at every moment.
func replace(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// heldPrefix begins the names of descriptors in the keeper: it is followed by
// the container, a slash and a number.
const heldPrefix = "seccomp/"

// load takes up what another node watched.
func (w *Watcher) load(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(w.dir(), "*.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var s saved
		if err := json.Unmarshal(text, &s); err != nil || s.Container+".json" != filepath.Base(file) {
			w.config.Log.ErrorContext(ctx, "state of seccomp that cannot be read is dropped", "file", file, "err", err)
			if err := os.Remove(file); err != nil {
				return err
			}
			continue
		}
		c := newWatched(s)
		if err := w.loadSeen(c); err != nil {
			w.config.Log.WarnContext(ctx, "what seccomp saw is lost", "container", s.Container, "err", err)
		}
		w.watched[s.Container] = c
		if c.Mode == stop && len(c.Forbidden) > 0 {
			w.stopLater(c)
		}
	}
	return w.adopt(ctx)
}

func (w *Watcher) loadSeen(c *watched) error {
	text, err := os.ReadFile(w.seenFile(c.Container))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &c.seen)
}

// adopt takes the descriptors back that the keeper has, and has it drop those
// that nobody needs.
func (w *Watcher) adopt(ctx context.Context) error {
	if w.config.Keeper == nil {
		return nil
	}
	held, err := w.config.Keeper.Held()
	if err != nil {
		return err
	}
	for name, files := range held {
		l := w.again(name, files)
		for _, file := range files {
			file.Close()
		}
		if l != nil {
			l.of.live[l] = true
			w.waiting = append(w.waiting, l)
		} else if strings.HasPrefix(name, heldPrefix) {
			if err := w.config.Keeper.Drop(ctx, name); err != nil {
				w.config.Log.WarnContext(ctx, "descriptor that nobody needs", "name", name, "err", err)
			}
		}
	}
	return nil
}

// again is a listener of what was held under name; nil if it is of no use.
func (w *Watcher) again(name string, files []*os.File) *listener {
	rest, ours := strings.CutPrefix(name, heldPrefix)
	container, number, _ := strings.Cut(rest, "/")
	c := w.watched[container]
	n, err := strconv.Atoi(number)
	if !ours || c == nil || err != nil || len(files) != 1 {
		return nil
	}
	c.holds = max(c.holds, n)
	l, err := newListener(c, files[0], name)
	if err != nil {
		return nil
	}
	return l
}
