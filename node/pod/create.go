package pod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/base/span"
	"berth/base/undo"
	"berth/node/bundle"
	"berth/node/snapshot"
	"berth/spec"
)

// CreateContainer makes a container in a pod and gives its id; StartContainer
// runs it. One of the same name and attempt that was not started yet and is of
// the same configuration is that container.
//
// errs.NotFound: no such pod, or no such image. errs.Conflict: the pod is not
// ready. errs.Exists: there is another container of that name and attempt.
// errs.Invalid: the configuration can never work.
func (s *Set) CreateContainer(ctx context.Context, pod string, config spec.PodContainerConfig) (string, error) {
	p, err := s.find(pod)
	if err != nil {
		return "", err
	}
	podConfig := p.get().Config
	if err := checkContainer(&podConfig, &config); err != nil {
		return "", err
	}
	for {
		create, err := s.reserveMember(ctx, p, &config, "")
		if err != nil {
			return "", err
		}
		id, err := create.wait(ctx)
		if !errors.Is(err, errUnmade) { // else its name is free now
			return id, volumeFirst(err)
		}
	}
}

// reserveMember starts to make the container, or finds the work that makes the
// one of that name. source is the folder of a checkpoint that it goes on from.
func (s *Set) reserveMember(ctx context.Context, p *pod, config *spec.PodContainerConfig, source string) (*call[string], error) {
	key := memberName{config.Name, config.Attempt}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.names[key]; m != nil {
		rec := m.rec.Load()
		switch {
		case rec.Phase == making && over(m.create): // making it has failed, and could not be undone
			m.create = begin(ctx, s, func(ctx context.Context) (string, error) {
				return "", cmp.Or(s.removeMember(ctx, m), errUnmade)
			})
		case rec.Started || rec.Phase == removing || !same(&rec.Container.Config, config):
			return nil, errs.New(errs.Exists, "pod %s has a container %s of attempt %d already: %s", p.id, config.Name, config.Attempt, m.id)
		}
		return m.create, nil
	}
	if !p.ready() {
		return nil, errs.New(errs.Conflict, "pod %s is not ready", p.id)
	}
	podConfig := p.get().Config
	m := newMember(p, &containerRecord{Phase: making, Boot: s.Boot, Container: spec.PodContainer{
		ID: newID(), Pod: p.id, Config: *config, State: spec.Created, Created: time.Now().UTC(),
		LogPath: logPath(&podConfig, config), Resources: config.Resources,
	}})
	m.source = source
	var earlier []*member
	for _, other := range p.members {
		if is := other.rec.Load().Container.Config; other.unheard.Load() && is.Name == config.Name && is.Attempt < config.Attempt {
			earlier = append(earlier, other)
		}
	}
	m.op <- struct{}{} // it is new: nobody else has it
	p.members[m.id], p.names[key] = m, m
	p.working++
	s.index(m)
	m.create = begin(ctx, s, func(ctx context.Context) (string, error) {
		defer p.leave()
		defer m.op.Unlock()
		err := s.endUnheard(ctx, earlier)
		if err != nil {
			s.forgetMember(m)
		} else {
			err = s.makeMember(ctx, m)
		}
		if err != nil {
			s.spoil()
			return "", fmt.Errorf("create container %s of pod %s: %w", config.Name, podConfig.Name, err)
		}
		return m.id, nil
	})
	return m.create, nil
}

func (s *Set) index(m *member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[m.id] = m
}

// forgetMember takes a container out of the indexes.
func (s *Set) forgetMember(m *member) {
	s.mu.Lock()
	delete(s.containers, m.id)
	s.mu.Unlock()
	p := m.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.members, m.id)
	config := &m.rec.Load().Container.Config
	if key := (memberName{config.Name, config.Attempt}); p.names[key] == m {
		delete(p.names, key)
	}
}

// makeMember makes a container. On failure nothing of it is left; what could
// not be taken away now is with its pod. op is held.
func (s *Set) makeMember(ctx context.Context, m *member) (err error) {
	config := &m.rec.Load().Container.Config
	ctx, end := s.traced(ctx, m.pod.id, "create container "+config.Name)
	defer func() { end(err) }()
	var u undo.Stack
	defer func() {
		if err != nil {
			u.Run(ctx, &err)
		}
	}()
	image, from, err := s.foundation(ctx, m)
	if err != nil {
		s.forgetMember(m)
		return errors.Join(err, s.dropParts(m))
	}
	next := *m.rec.Load()
	next.Restore = from != nil
	next.Container.ImageID, next.Container.ImageRef = image.ID, image.Ref
	next.Container.StopSignal = cmp.Or(config.StopSignal, image.Config.StopSignal)
	m.rec.Store(&next)
	u.Add("forget the container", func(ctx context.Context) error { return s.dismissMember(ctx, m) })
	if err := s.db.putContainer(m.rec.Load()); err != nil {
		return err
	}
	oci, err := s.prepare(ctx, m, image, from)
	if err != nil {
		return err
	}
	if err := s.adjust(ctx, m, oci); err != nil {
		return err
	}
	if err := from.fit(oci); err != nil {
		return err
	}
	oci.Version = bundle.LowestVersion(oci)
	given, err := s.given(m, image, oci)
	if err != nil {
		return err
	}
	// From here on others may see it.
	if err := s.changeMember(m, func(r *containerRecord) { r.Phase = made }); err != nil {
		return err
	}
	if _, err := s.Runner.AdmitGiven(ctx, given); err != nil {
		return err
	}
	m.admitted.Store(true)
	s.told(ctx, "container created", m.id, func(ctx context.Context) error {
		return s.Hooks.PostCreateContainer(ctx, m.pod.get(), m.rec.Load().Container)
	})
	return nil
}

// dismissMember takes away all that there may be of a container that nobody was
// told of. op is held.
func (s *Set) dismissMember(ctx context.Context, m *member) error {
	if err := s.clear(ctx, m); err != nil {
		return err
	}
	s.forgetMember(m)
	s.tellRemoval(ctx, m)
	return nil
}

func (s *Set) resolve(ctx context.Context, ref string) (_ Image, err error) {
	ctx, end := span.Start(ctx, "resolve image", "image", ref)
	defer func() { end(err) }()
	image, err := s.Images.Resolve(ctx, ref)
	if err != nil {
		return image, fmt.Errorf("image %s: %w", ref, err)
	}
	return image, nil
}

// prepare makes the root file system and the spec.
func (s *Set) prepare(ctx context.Context, m *member, image Image, from *origin) (*specs.Spec, error) {
	root, err := s.makeRoot(ctx, m, image)
	if err != nil {
		return nil, err
	}
	if from != nil {
		if err := errors.Join(from.lay(ctx, root), s.layShm(ctx, m.pod, from.dir, from.dir)); err != nil {
			return nil, err
		}
	}
	volumes, err := s.mountImages(ctx, m)
	if err != nil {
		return nil, err
	}
	pod, c := m.pod.get(), m.rec.Load().Container
	pidns, err := s.pidNamespace(m)
	if err != nil {
		return nil, err
	}
	ctx, end := span.Start(ctx, "make the spec")
	oci, user, err := bundle.PodSpec(ctx, bundle.PodInput{
		Pod: pod, Container: c, Image: image.Config, Host: s.Host, Runtime: s.Features(ctx, pod.Runtime), Rootfs: root,
		CgroupPath: s.cgroupPath(&pod.Config, m.id), Idmap: idmap(&pod.Config), PIDNS: pidns,
		ResolvConf: s.podPath(m.pod, resolvConf), Hosts: s.podPath(m.pod, hosts), HostnameFile: s.podPath(m.pod, hostnameFile), Shm: s.shmOf(m.pod),
		Images: volumes, Devices: s.Devices, ProfileDir: s.ProfileRoot, DefaultSeccomp: s.DefaultSeccomp,
		Annotations: s.Annotations,
	})
	end(err)
	if err != nil {
		return nil, err
	}
	next := *m.rec.Load()
	next.Container.User, next.Container.Cgroup = &user, oci.Linux.CgroupsPath
	m.rec.Store(&next)
	return oci, nil
}

func (s *Set) makeRoot(ctx context.Context, m *member, image Image) (root string, err error) {
	ctx, end := span.Start(ctx, "root file system")
	defer func() { end(err) }()
	pod := m.pod.get()
	key := snapshot.Key(m.id)
	if _, err := s.Snapshots.Prepare(ctx, key, image.Layers, rootLabels(&pod, m.id)); err != nil {
		return "", fmt.Errorf("prepare the root file system: %w", err)
	}
	if root, err = s.Runner.MountRoot(ctx, Namespace, m.id, key); err != nil {
		return "", fmt.Errorf("mount the root file system: %w", err)
	}
	return root, nil
}

// adjust lets plugins change the spec, and has system calls watched where the
// pod asks for it.
func (s *Set) adjust(ctx context.Context, m *member, oci *specs.Spec) error {
	pod, c := m.pod.get(), m.rec.Load().Container
	before := limitsOf(oci.Linux.Resources)
	if err := s.ask(ctx, func(ctx context.Context) error {
		return s.Hooks.CreateContainer(ctx, pod, c, oci)
	}); err != nil {
		return err
	}
	adjusted := *m.rec.Load()
	adjusted.Container.Resources = changed(c.Resources, before, oci.Linux.Resources)
	adjusted.Container.Cgroup = oci.Linux.CgroupsPath
	m.rec.Store(&adjusted)
	if s.Seccomp == nil || oci.Linux == nil {
		return nil
	}
	profile, err := s.Seccomp.Watch(ctx, pod, c, oci.Linux.Seccomp)
	if err != nil {
		return fmt.Errorf("watch system calls: %w", err)
	}
	oci.Linux.Seccomp = profile
	return nil
}

// specType is what clients of containerd call an OCI runtime spec.
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// Labels that clients of containerd know a container of Kubernetes by.
const (
	kindLabel     = "io.cri-containerd.kind"
	kindContainer = "container"
	kindPause     = "sandbox"
)

// given is the container as the room of containers gets it.
func (s *Set) given(m *member, image Image, oci *specs.Spec) (spec.Given, error) {
	data, err := json.Marshal(oci)
	if err != nil {
		return spec.Given{}, fmt.Errorf("encode the spec: %w", err)
	}
	pod, c := m.pod.get(), m.rec.Load().Container
	labels := maps.Clone(c.Config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[kindLabel] = kindContainer
	if c.StopSignal != "" {
		labels[stopSignalLabel] = c.StopSignal
	}
	return spec.Given{
		Namespace: Namespace, ID: m.id, Labels: labels, Owned: true,
		Name:  pod.Config.Namespace + "/" + pod.Config.Name + "/" + c.Config.Name,
		Image: cmp.Or(c.Config.UserImage, image.Name, image.Ref), Runtime: pod.Runtime,
		Spec:        &spec.Opaque{Type: specType, Value: data},
		SnapshotKey: m.id, Sandbox: pod.ID,
		Log: c.LogPath, Stdin: c.Config.Stdin, StdinOnce: c.Config.StdinOnce,
	}, nil
}

// stopSignalLabel is where the room of containers looks for it.
const stopSignalLabel = "io.containerd.image.config.stop-signal"

// pidNamespace is the path of the one that the container joins; "" for none or
// one of its own.
func (s *Set) pidNamespace(m *member) (string, error) {
	ns := &m.rec.Load().Container.Config.Security.Namespaces
	switch ns.PID {
	case spec.NamespacePod:
		path := m.pod.get().PIDNS
		if path == "" {
			return "", errs.New(errs.Invalid, "the container wants to share the pod's PID namespace, which has none")
		}
		return path, nil
	case spec.NamespaceTarget:
		return s.targetNamespace(m, ns.Target)
	}
	return "", nil
}

// targetNamespace is that of another container of the pod.
func (s *Set) targetNamespace(m *member, target string) (string, error) {
	other, err := s.findContainer(target)
	if err != nil {
		return "", fmt.Errorf("target of the PID namespace: %w", err)
	}
	if other.pod != m.pod {
		return "", errs.New(errs.Invalid, "target of the PID namespace: container %s is not of this pod", target)
	}
	is := s.show(other)
	if is.Pid == 0 {
		return "", errs.New(errs.Conflict, "target of the PID namespace: container %s is %s", target, is.State)
	}
	file := s.targetFile(m)
	return file, pinPIDNamespace(is.Pid, func() int { return s.show(other).Pid }, file)
}

// makeLogFolder makes the folder that a log goes to, as kubelet does.
func makeLogFolder(file string) error {
	if file == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // those who collect logs read it
		return fmt.Errorf("make the folder of the log: %w", err)
	}
	return nil
}
