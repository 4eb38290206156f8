package container_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/base/errs"
	"berth/node/network"
	"berth/node/snapshot"
	"berth/spec"
)

type images struct{ w *world }

func (i images) Get(_ context.Context, ref string) (spec.Image, error) {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	for name, image := range i.w.images {
		if name == ref || image.ID == ref {
			return image, nil
		}
	}
	return spec.Image{}, errs.New(errs.NotFound, "no such image: %s", ref)
}

func (i images) Chain(context.Context, string) (snapshot.Key, error) {
	return "sha256:chain", i.w.step("chain", "")
}

func (i images) Commit(_ context.Context, _ spec.Image, active snapshot.Key, config spec.ImageConfig, req spec.CommitRequest, read func()) (spec.Image, error) {
	read()
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	image := spec.Image{ID: "sha256:committed-" + string(active), Config: config, Author: req.Author}
	i.w.images[req.Reference] = image
	return image, nil
}

type snapshots struct{ w *world }

func (s snapshots) Prepare(_ context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error) {
	if err := s.w.step("prepare", string(key)); err != nil {
		return snapshot.Active{}, err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.snapshots[key] || !s.w.snapshots[parent] || labels["berth.container"] != string(key) {
		return snapshot.Active{}, errs.New(errs.Conflict, "prepare %s on %s with %v", key, parent, labels)
	}
	s.w.snapshots[key] = true
	return snapshot.Active{}, nil
}

func (s snapshots) Mount(_ context.Context, key snapshot.Key, target string) error {
	if err := s.w.step("mount", string(key)); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if !s.w.snapshots[key] {
		return errs.New(errs.NotFound, "no snapshot %s", key)
	}
	if s.w.mounts[target] != "" {
		return errs.New(errs.Conflict, "%s is mounted", target)
	}
	s.w.mounts[target] = key
	// What is in the snapshot lies beside the mount points.
	return os.CopyFS(target, os.DirFS(s.w.content(key)))
}

// layer is the snapshot that a client has made under a name of its own.
func (w *world) layer(_ context.Context, namespace, snapshotter, name string) (snapshot.Key, error) {
	if namespace == "" || snapshotter != "fakefs" {
		return "", errs.New(errs.NotFound, "no snapshot %s", name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	key := snapshot.Key("client/" + name)
	w.snapshots[key] = true
	return key, nil
}

type taskRoots struct{ w *world }

func (r taskRoots) Mount(_ context.Context, mounts []snapshot.Mount, target string) error {
	if err := r.w.step("mount root", target); err != nil {
		return err
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if r.w.roots[target] || !exists(target) || len(mounts) == 0 {
		return errs.New(errs.Conflict, "mount %v on %s", mounts, target)
	}
	r.w.roots[target] = true
	for _, m := range mounts {
		r.w.others[target] = r.w.others[target] || m.Type != "bind"
	}
	return nil
}

func (r taskRoots) Unmount(_ context.Context, target string) error {
	if err := r.w.step("unmount root", target); err != nil {
		return err
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if r.w.roots[target] && filepath.Base(target) == "etc" { // what was written there goes with it
		r.w.ok(errors.Join(os.RemoveAll(target), os.Mkdir(target, 0o711)))
	}
	delete(r.w.roots, target)
	delete(r.w.others, target)
	return nil
}

// removeState empties the folder that a reboot empties.
func (w *world) removeState() { w.ok(os.RemoveAll(filepath.Join(w.dir, "state"))) }

func (w *world) content(key snapshot.Key) string {
	dir := filepath.Join(w.dir, "snapshots", string(key))
	w.ok(os.MkdirAll(dir, 0o755))
	return dir
}

func (s snapshots) Unmount(_ context.Context, target string) error {
	if err := s.w.step("unmount", target); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.others[target] { // the store would hold it for a while
		return errs.New(errs.Conflict, "%s is no mount of the store", target)
	}
	key := s.w.mounts[target]
	delete(s.w.mounts, target)
	if key == "" && !exists(target) {
		return nil
	}
	if key != "" {
		dir := s.w.content(key)
		s.w.ok(os.RemoveAll(dir))
		s.w.ok(os.CopyFS(dir, os.DirFS(target)))
	}
	s.w.ok(os.RemoveAll(target))
	return os.Mkdir(target, 0o711)
}

func (s snapshots) Stat(_ context.Context, key snapshot.Key) (snapshot.Info, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if !s.w.snapshots[key] {
		return snapshot.Info{}, errs.New(errs.NotFound, "no snapshot %s", key)
	}
	return snapshot.Info{Key: key, Labels: map[string]string{"berth.container": string(key)}}, nil
}

func (s snapshots) Remove(_ context.Context, key snapshot.Key) error {
	if err := s.w.step("remove snapshot", string(key)); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if !s.w.snapshots[key] {
		return errs.New(errs.NotFound, "no snapshot %s", key)
	}
	delete(s.w.snapshots, key)
	return nil
}

func (s snapshots) Walk(_ context.Context, fn func(snapshot.Info) error) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for key := range s.w.snapshots {
		info := snapshot.Info{Key: key}
		if key != "sha256:chain" && !strings.HasPrefix(string(key), "client/") {
			info.Labels = map[string]string{"berth.container": string(key)}
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

func (s snapshots) Usage(context.Context, snapshot.Key) (snapshot.Usage, error) {
	return snapshot.Usage{Size: 7}, nil
}

func (s snapshots) Changes(context.Context, snapshot.Key) ([]spec.Change, error) {
	return []spec.Change{{Kind: "A", Path: "/new"}}, nil
}

type networks struct{ w *world }

func (n networks) NewNamespace(_ context.Context, id string) (string, error) {
	if err := n.w.step("new namespace", id); err != nil {
		return "", err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.spaces[id] = true
	return "/netns/" + id, nil
}

func (n networks) RemoveNamespace(_ context.Context, id string) error {
	if err := n.w.step("remove namespace", id); err != nil {
		return err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	delete(n.w.spaces, id)
	return nil
}

func (n networks) Attach(_ context.Context, req network.AttachRequest) (network.Attachment, error) {
	if err := n.w.step("attach", req.Container); err != nil {
		return network.Attachment{}, err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for id, other := range n.w.attached {
		if len(req.Choice.Ports) > 0 && len(other.Choice.Ports) > 0 && id != req.Container {
			return network.Attachment{}, errs.New(errs.Conflict, "port %d is in use", req.Choice.Ports[0].HostPort)
		}
	}
	n.w.attached[req.Container] = req
	return network.Attachment{
		Endpoints: []spec.Endpoint{{Network: "bridge", Container: req.Container, IPv4: "10.0.0.2/24"}},
		Ports:     req.Choice.Ports,
	}, nil
}

func (n networks) Detach(_ context.Context, id string) error {
	if err := n.w.step("detach", id); err != nil {
		return err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	delete(n.w.attached, id)
	return nil
}

func (n networks) Connect(_ context.Context, req network.AttachRequest, config spec.EndpointConfig) (spec.Endpoint, error) {
	return spec.Endpoint{Network: config.Network, Container: req.Container}, n.w.step("connect", req.Container)
}

func (n networks) Disconnect(_ context.Context, id, _ string) error {
	return n.w.step("disconnect", id)
}

func (n networks) Rename(string, string) {}

func (n networks) ResolvConf(spec.NetworkChoice, []spec.Endpoint) []byte { return []byte("# resolv\n") }

func (n networks) Hosts(_ spec.NetworkChoice, hostname, _ string, _ []spec.Endpoint) []byte {
	return []byte("127.0.0.1 localhost " + hostname + "\n")
}

type volumes struct{ w *world }

func (v volumes) Create(_ context.Context, config spec.VolumeConfig) (spec.Volume, error) {
	if err := v.w.step("create volume", config.Name); err != nil {
		return spec.Volume{}, err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	anonymous := config.Name == ""
	if anonymous {
		config.Name = fmt.Sprintf("anonymous-%d", len(v.w.volumes))
	}
	if old := v.w.volumes[config.Name]; old != nil {
		return old.Volume, nil
	}
	dir := filepath.Join(v.w.dir, "volumes", config.Name)
	v.w.ok(os.MkdirAll(dir, 0o755))
	made := &volume{spec.Volume{Name: config.Name, Path: dir, Anonymous: anonymous}, map[string]bool{}}
	v.w.volumes[config.Name] = made
	return made.Volume, nil
}

func (v volumes) List(context.Context, spec.Filter) ([]spec.Volume, error) {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	var list []spec.Volume
	for _, name := range slices.Sorted(maps.Keys(v.w.volumes)) {
		list = append(list, v.w.volumes[name].Volume)
	}
	return list, nil
}

func (v volumes) Remove(_ context.Context, name string, force bool) error {
	if err := v.w.step("remove volume", name); err != nil {
		return err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	old := v.w.volumes[name]
	if old == nil {
		return errs.New(errs.NotFound, "no volume %s", name)
	}
	if len(old.UsedBy) > 0 {
		return errs.New(errs.Conflict, "volume %s is in use", name)
	}
	delete(v.w.volumes, name)
	return nil
}

func (v volumes) change(step, name, id string, fn func(*volume)) (string, error) {
	if err := v.w.step(step, name); err != nil {
		return "", err
	}
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	old := v.w.volumes[name]
	if old == nil {
		if step == "release volume" {
			return "", nil
		}
		return "", errs.New(errs.NotFound, "no volume %s", name)
	}
	fn(old)
	return old.Path, nil
}

func (v volumes) Reserve(_ context.Context, name, id string) error {
	_, err := v.change("reserve volume", name, id, func(o *volume) { o.use(id) })
	return err
}

func (o *volume) use(id string) {
	if !slices.Contains(o.UsedBy, id) {
		o.UsedBy = append(slices.Clone(o.UsedBy), id)
	}
}

func (v volumes) Acquire(_ context.Context, name, id string) (string, error) {
	return v.change("acquire volume", name, id, func(o *volume) { o.use(id); o.mounted[id] = true })
}

func (v volumes) Unmount(_ context.Context, name, id string) error {
	_, err := v.change("unmount volume", name, id, func(o *volume) { delete(o.mounted, id) })
	return err
}

func (v volumes) Release(_ context.Context, name, id string) error {
	_, err := v.change("release volume", name, id, func(o *volume) {
		delete(o.mounted, id)
		o.UsedBy = slices.DeleteFunc(slices.Clone(o.UsedBy), func(u string) bool { return u == id })
	})
	return err
}

func (v volumes) Fill(_ context.Context, name, root, from string) error {
	if err := v.w.step("fill volume", name); err != nil {
		return err
	}
	if !exists(root) || !strings.HasPrefix(from, "/") {
		return errs.New(errs.Invalid, "fill %s from %s in %s", name, from, root)
	}
	return nil
}

type events struct{ w *world }

func (e events) Publish(kind, action, id string, attrs map[string]string) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.w.events = append(e.w.events, spec.Event{Type: kind, Action: action, ID: id, Attributes: attrs, Time: time.Now()})
}

type meter struct{ w *world }

func (m meter) Read(cgroup string, pid int) (spec.Stats, error) {
	s := spec.Stats{}
	s.Pids.Current = uint64(pid)
	return s, nil
}

func (m meter) OOMKills(cgroup string) (uint64, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.oom[filepath.Base(cgroup)] {
		return 1, nil
	}
	return 0, errs.New(errs.NotFound, "no cgroup %s", cgroup)
}

func (m meter) Pids(string) ([]int, error) { return nil, io.EOF }
