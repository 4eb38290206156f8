package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"berth/base/errs"
	"berth/base/undo"
	"berth/node/bundle"
	"berth/node/snapshot"
	"berth/spec"
)

// snapshotLabel marks the snapshots that are containers' own.
const snapshotLabel = "berth.container"

// Create makes a container from an image that is here. errs.NotFound: no such
// image; errs.Exists: the name is in use; errs.Invalid: the config is.
func (s *Set) Create(ctx context.Context, config spec.ContainerConfig) (spec.Container, error) {
	image, err := s.Images.Get(ctx, config.Image)
	if err != nil {
		return spec.Container{}, fmt.Errorf("create container: %w", err)
	}
	made, err := s.create(ctx, config, image)
	if err != nil {
		return spec.Container{}, fmt.Errorf("create container: %w", err)
	}
	s.publish(made, "create")
	return *made, nil
}

func (s *Set) create(ctx context.Context, config spec.ContainerConfig, image spec.Image) (_ *spec.Container, err error) {
	made, err := s.design(config, image)
	if err != nil {
		return nil, err
	}
	var u undo.Stack
	defer func() {
		if err != nil {
			u.Run(ctx, &err)
		}
	}()

	if made.Name, err = s.reserve(made.ID, image.ID, config.Name); err != nil {
		return nil, err
	}
	u.Add("reserve the name", func(context.Context) error { s.free(made.ID, made.Name); return nil })
	made.Config.Name = made.Name

	chain, err := s.Images.Chain(ctx, image.ID)
	if err != nil {
		return nil, fmt.Errorf("layers of image %s: %w", config.Image, err)
	}
	key := snapshot.Key(made.ID)
	if _, err := s.Snapshots.Prepare(ctx, key, chain, s.snapshotLabels(made)); err != nil {
		return nil, fmt.Errorf("make the root: %w", err)
	}
	u.Add("remove the root", func(ctx context.Context) error { return s.Snapshots.Remove(ctx, key) })

	c := newContainer(record{Container: *made, Image: image.Config})
	if err := s.createVolumes(ctx, c, &u); err != nil {
		return nil, err
	}
	if err := s.createLog(made, &u); err != nil {
		return nil, err
	}
	if err := s.db.write(ctx, c); err != nil {
		return nil, fmt.Errorf("record it: %w", err)
	}
	s.mu.Lock()
	s.containers[c.id] = c
	delete(s.pending, c.id)
	s.mu.Unlock()
	return c.get(), nil
}

// design works out what a container is going to be, before anything is made.
func (s *Set) design(config spec.ContainerConfig, image spec.Image) (*spec.Container, error) {
	if config.Platform != "" && image.Platform != "" && !samePlatform(config.Platform, image.Platform) {
		return nil, errs.New(errs.NotFound, "image %s is here for %s, not for %s", config.Image, image.Platform, config.Platform)
	}
	args, err := bundle.Args(config, image.Config)
	if err != nil {
		return nil, err
	}
	id := newID()
	if err := s.complete(&config, id, image.Config); err != nil {
		return nil, err
	}
	if err := s.check(config); err != nil {
		return nil, err
	}
	return &spec.Container{
		ID:       id,
		Created:  time.Now().UTC(),
		Config:   config,
		Args:     args,
		Image:    config.Image,
		ImageID:  image.ID,
		Manifest: image.Manifest,
		Runtime:  config.Runtime,
		State:    spec.ContainerState{Status: spec.Created},
		Mounts:   planMounts(config.Mounts, image.Config.Volumes),
		Networks: []spec.Endpoint{},
		Ports:    []spec.PortMapping{},
		Exposed:  exposed(config.Network, image.Config.ExposedPorts),
		LogPath:  filepath.Join(s.logDir(id), "container.log"),
		Snapshot: id,
	}, nil
}

func (s *Set) snapshotLabels(c *spec.Container) map[string]string {
	labels := map[string]string{}
	if idmap := s.idmap(c); idmap != nil {
		labels = idmapLabels(idmap)
	}
	labels[snapshotLabel] = c.ID
	return labels
}

// createLog makes the empty log file, so that it can be followed at once.
func (s *Set) createLog(c *spec.Container, u *undo.Stack) error {
	dir := s.logDir(c.ID)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make the folder of logs: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make the log's folder: %w", err)
	}
	u.Add("remove the log", func(context.Context) error { return clearDir(dir) })
	f, err := os.OpenFile(c.LogPath, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("make the log: %w", err)
	}
	return f.Close()
}

// createVolumes makes and fills the volumes that the container's mounts name.
func (s *Set) createVolumes(ctx context.Context, c *container, u *undo.Stack) (err error) {
	mounts := c.get().Mounts
	if !hasVolume(mounts) {
		return nil
	}
	u.Add("unmount the root", func(ctx context.Context) error { return s.dropRoot(ctx, c.id) })
	root, err := s.mountRoot(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unmountRoot(context.WithoutCancel(ctx), c)) }()
	made := make([]spec.Mounted, len(mounts))
	for i, m := range mounts {
		if m.Type == "volume" {
			if m, err = s.createVolume(ctx, c.id, root, m, u); err != nil {
				return fmt.Errorf("volume for %s: %w", m.Target, err)
			}
		}
		made[i] = m
	}
	c.change(func(c *spec.Container) { c.Mounts = made })
	return nil
}

func (s *Set) createVolume(ctx context.Context, id, root string, m spec.Mounted, u *undo.Stack) (spec.Mounted, error) {
	v, err := s.Volumes.Create(ctx, spec.VolumeConfig{Name: m.Source})
	if err != nil {
		return m, err
	}
	m.Name = v.Name
	if m.Source == "" {
		m.Anonymous, m.Source = true, v.Name
		u.Add("remove volume "+v.Name, func(ctx context.Context) error { return s.Volumes.Remove(ctx, v.Name, true) })
	}
	if err := s.Volumes.Reserve(ctx, m.Name, id); err != nil {
		return m, err
	}
	u.Add("release volume "+m.Name, func(ctx context.Context) error { return s.Volumes.Release(ctx, m.Name, id) })
	if m.Host = v.Path; m.NoCopy {
		return m, nil
	}
	if m.Host, err = s.Volumes.Acquire(ctx, m.Name, id); err != nil {
		return m, err
	}
	filled := s.Volumes.Fill(ctx, m.Name, root, m.Target)
	return m, errors.Join(filled, s.Volumes.Unmount(context.WithoutCancel(ctx), m.Name, id))
}
