package container

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"berth/base/errs"
	"berth/spec"
)

// Commit makes an image of the container as it is. A running one is paused
// while its changes are read, which takes as long as they are big, unless the
// request says otherwise.
func (s *Set) Commit(ctx context.Context, ref string, req spec.CommitRequest) (image spec.Image, err error) {
	c, err := s.find(ref)
	if err != nil {
		return image, err
	}
	base, err := s.Images.Get(ctx, imageOf(c.get()))
	if err != nil {
		return image, fmt.Errorf("commit container %s: %w", c.name(), err)
	}
	key, err := s.rootKey(ctx, c)
	if err != nil {
		return image, fmt.Errorf("commit container %s: %w", c.name(), err)
	}
	resume := func() error { return nil }
	if !req.NoPause {
		if resume, err = s.hold(ctx, c); err != nil {
			return image, err
		}
	}
	resume = sync.OnceValue(resume)
	view := c.get()
	image, err = s.Images.Commit(ctx, base, key, effective(view, c.imageConfig(base)), req, func() { _ = resume() })
	if err = errors.Join(err, resume()); err != nil {
		return image, fmt.Errorf("commit container %s: %w", view.Name, err)
	}
	s.publish(view, "commit", "imageID", image.ID, "imageRef", req.Reference, "comment", req.Message)
	return image, nil
}

// hold pauses the container, if it runs, until resume is called.
func (s *Set) hold(ctx context.Context, c *container) (resume func() error, err error) {
	if err := c.op.Lock(ctx); err != nil {
		return nil, err
	}
	defer c.op.Unlock()
	if c.status() != spec.Running {
		return func() error { return nil }, nil
	}
	if err := s.pause(ctx, c); err != nil {
		return nil, err
	}
	held := c.current()
	return func() error {
		ctx := context.WithoutCancel(ctx)
		if err := c.op.Lock(ctx); err != nil {
			return err
		}
		defer c.op.Unlock()
		if c.current() != held || c.status() != spec.Paused {
			return nil // somebody else has ended or thawed it
		}
		if err := s.resume(ctx, c); !errors.Is(err, errs.NotFound) {
			return err
		}
		return nil
	}, nil
}

// imageOf names the image of a container: by its digest where the node made
// it, else as its client does.
func imageOf(c *spec.Container) string { return orElse(c.ImageID, c.Image) }

// imageConfig is that of the image the container was made from.
func (c *container) imageConfig(base spec.Image) spec.ImageConfig {
	if c.given.Load() != nil {
		return base.Config
	}
	return c.image
}

// effective is the configuration that an image of the container gets.
func effective(c *spec.Container, image spec.ImageConfig) spec.ImageConfig {
	config := c.Config
	image.User = orElse(config.User, image.User)
	image.WorkDir = orElse(config.WorkDir, image.WorkDir)
	image.StopSignal = orElse(config.StopSignal, image.StopSignal)
	image.Env = mergeEnv(image.Env, config.Env)
	if config.Entrypoint != nil {
		image.Entrypoint, image.Command = config.Entrypoint, nil
	}
	if config.Command != nil {
		image.Command = config.Command
	}
	image.Labels = config.Labels // the image's are among them
	image.Health = config.Health
	image.ExposedPorts = c.Exposed
	return image
}
