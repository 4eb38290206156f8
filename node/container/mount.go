package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth/base/errs"
	"berth/base/undo"
	"berth/spec"
)

// acquireMounts finds, and where asked for makes, what is to be mounted in the
// container.
func (s *Set) acquireMounts(ctx context.Context, c *spec.Container, u *undo.Stack) ([]spec.Mounted, error) {
	mounts := make([]spec.Mounted, len(c.Mounts))
	for i, m := range c.Mounts {
		var err error
		switch m.Type {
		case "volume":
			m.Host, err = s.Volumes.Acquire(ctx, m.Name, c.ID)
			u.Add("let go of volume "+m.Name, func(ctx context.Context) error { return s.Volumes.Unmount(ctx, m.Name, c.ID) })
		case "bind":
			m.Host, err = bindSource(m)
		}
		if err != nil {
			return nil, fmt.Errorf("mount on %s: %w", m.Target, err)
		}
		mounts[i] = m
	}
	return mounts, nil
}

// bindSource checks a path of the host, or makes it as docker run -v does.
func bindSource(m spec.Mounted) (string, error) {
	source := filepath.Clean(m.Source)
	_, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		if !m.CreateHost {
			return "", errs.New(errs.Invalid, "there is no %s on the host", source)
		}
		err = os.MkdirAll(source, 0o755) //nolint:gosec // as docker makes it
	}
	if err != nil {
		return "", errs.New(errs.Invalid, "bind of the host's %s: %w", source, err)
	}
	return source, nil
}

// releaseMounts lets go of the volumes when the process has ended.
func (s *Set) releaseMounts(ctx context.Context, c *spec.Container) error {
	var failed error
	for _, m := range c.Mounts {
		if m.Type == "volume" {
			failed = errors.Join(failed, s.Volumes.Unmount(ctx, m.Name, c.ID))
		}
	}
	return failed
}
