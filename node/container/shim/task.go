package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"berth/base/errs"
	"berth/node/container"
)

// record is what a next node has to know of a container.
type record struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"` // the client's, and the shim's
	Runtime   string `json:"runtime"`
	Binary    string `json:"binary"`
	Bundle    string `json:"bundle"`
	Group     string `json:"group"` // containers of one share a shim

	TTY, Stdin bool               `json:",omitempty"`
	Streams    container.Streams  `json:"streams"`       // as the shim has them
	Log        *container.LogFile `json:"log,omitempty"` // where they are ours
	Mounted    bool               `json:"mounted"`       // the shim mounts the root
	Endpoint   endpoint           `json:"endpoint"`
	Made       bool               `json:"made"` // nobody gave it up half made

	Pid     int                   `json:"pid"`
	Execs   map[string]execRecord `json:"execs,omitempty"` // by our id
	Exit    *container.Exit       `json:"exit,omitempty"`
	Deleted bool                  `json:"deleted"` // only its end is still to be known
	Forgot  bool                  `json:"forgot"`  // not even that
}

// execRecord is what a next node has to know of a further process.
type execRecord struct {
	Name    string            `json:"name"` // the shim's
	Streams container.Streams `json:"streams"`
	Ours    bool              `json:"ours"` // the streams are
	Stdin   bool              `json:"stdin"`
	Pid     int               `json:"pid"`
	Exit    *container.Exit   `json:"exit,omitempty"`
}

// task is a container.
type task struct {
	record  // what changes in it is under mu
	driver  *Driver
	init    *process
	shim    *shim
	log     *os.File // the FIFO of the shim's own log
	settled bool     // under the driver's lock: it has been made

	mu      sync.Mutex
	cleaned bool // its shim is gone, and its program has put away what was left
}

func (d *Driver) newTask(r record) *task {
	t := &task{record: r, driver: d}
	if t.Execs == nil {
		t.Execs = map[string]execRecord{}
	}
	t.init = newProcess(t, r.ID, "", r.Pid)
	return t
}

// named is the bundle by a path that ends in the container's name: itself, or
// a link to it.
func (t *task) named() string {
	if filepath.Base(t.Bundle) == t.Name {
		return t.Bundle
	}
	return t.driver.link(t.Namespace, t.Name)
}

func (t *task) invocation() invocation {
	return invocation{binary: t.Binary, namespace: t.Namespace, name: t.Name, bundle: t.Bundle, named: t.named()}
}

func (t *task) removed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Deleted
}

// note changes the record, also on disk.
func (t *task) note(change func(*record)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.record)
	return t.driver.save(t.record)
}

func (t *task) snapshot() record {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.record
	r.Execs = maps.Clone(t.Execs)
	return r
}

// execNamed finds an exec by what the shim calls it.
func (t *task) execNamed(name string) *process {
	for id, e := range t.snapshot().Execs {
		if e.Name == name {
			return t.driver.process(id)
		}
	}
	return nil
}

// processes are the container's first process and its execs.
func (t *task) processes() []*process {
	all := []*process{t.init}
	for id := range t.snapshot().Execs {
		if p := t.driver.process(id); p != nil {
			all = append(all, p)
		}
	}
	return all
}

// letGo closes what the node holds open.
func (t *task) letGo() {
	if t.log != nil {
		_ = t.log.Close()
	}
	for _, p := range t.processes() {
		p.letGo()
	}
}

// add makes the container known. errs.Exists: its id or name is taken.
func (d *Driver) add(t *task) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errs.New(errs.Unavailable, "the node is shutting down")
	}
	for _, other := range d.tasks {
		same := other.ID == t.ID || other.Namespace == t.Namespace && other.Name == t.Name
		if same && !other.removed() {
			return errs.New(errs.Exists, "container %s is there already", t.ID)
		}
	}
	d.tasks[t.ID] = t
	return nil
}

// forget drops a container that has ended, or was given up. Until it is
// deleted only its end is.
func (d *Driver) forget(t *task) error {
	if !t.removed() {
		return t.note(func(r *record) { r.Forgot = true })
	}
	return d.drop(t)
}

// drop removes all that is known of a container.
func (d *Driver) drop(t *task) error {
	d.mu.Lock()
	if d.tasks[t.ID] == t {
		delete(d.tasks, t.ID)
	}
	for id, p := range d.execs {
		if p.task == t {
			delete(d.execs, id)
		}
	}
	d.mu.Unlock()
	if err := os.Remove(d.record(t.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record of container %s: %w", t.ID, err)
	}
	return nil
}

// forgetExec drops an exec that has ended, here and in the shim.
func (d *Driver) forgetExec(ctx context.Context, p *process) error {
	d.mu.Lock()
	delete(d.execs, p.id)
	d.mu.Unlock()
	p.letGo()
	if err := os.RemoveAll(d.streams(p.id)); err != nil {
		return fmt.Errorf("streams of exec %s: %w", p.id, err)
	}
	if p.task.removed() {
		return nil
	}
	if err := p.delete(ctx); err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Unavailable) {
		d.Log.WarnContext(ctx, "a shim does not forget an exec", "exec", p.id, "error", err)
	}
	return p.task.note(func(r *record) { delete(r.Execs, p.id) })
}

// save writes a record; the file is always whole.
func (d *Driver) save(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record of container %s: %w", r.ID, err)
	}
	path := d.record(r.ID)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("record of container %s: %w", r.ID, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("record of container %s: %w", r.ID, err)
	}
	return nil
}

// load reads the records that are there, and removes what is none.
func (d *Driver) load(ctx context.Context) ([]record, error) {
	entries, err := os.ReadDir(d.records())
	if err != nil {
		return nil, fmt.Errorf("records of shims: %w", err)
	}
	var all []record
	for _, e := range entries {
		path := filepath.Join(d.records(), e.Name())
		var r record
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("records of shims: %w", err)
		}
		if filepath.Ext(path) != ".json" || json.Unmarshal(data, &r) != nil || d.record(r.ID) != path {
			d.Log.WarnContext(ctx, "not the record of a container: removed", "file", path)
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("records of shims: %w", err)
			}
			continue
		}
		all = append(all, r)
	}
	return all, nil
}
