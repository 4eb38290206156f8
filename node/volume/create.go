package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/undo"
	"berth/spec"
)

// Create makes a volume. One of that name with the same driver and options
// is given back; with others it is errs.Conflict.
func (s *Set) Create(ctx context.Context, config spec.VolumeConfig) (v spec.Volume, err error) {
	v = spec.Volume{
		Name: config.Name, Driver: config.Driver, Created: now(), Anonymous: config.Name == "",
		Labels: config.Labels, Options: config.Options,
	}
	switch v.Driver {
	case "", local:
		v.Driver = local
	default:
		return spec.Volume{}, errs.New(errs.Unsupported, "volume driver %q: there is only %q", v.Driver, local)
	}
	if v.Anonymous {
		v.Name = anonymousName()
	}
	if err := checkName(v.Name); err != nil {
		return spec.Volume{}, err
	}
	if _, err := parseOptions(v.Options); err != nil {
		return spec.Volume{}, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	v = copyOf(v)
	v.Path = s.data(v.Name)

	// A second maker of the name waits for the first.
	fresh := &entry{volume: v, holders: map[string]bool{}}
	fresh.work.Lock()
	defer fresh.work.Unlock()
	s.mu.Lock()
	if have := s.entries[v.Name]; have != nil {
		s.mu.Unlock()
		return s.existing(ctx, have, config)
	}
	s.entries[v.Name] = fresh
	s.mu.Unlock()

	name, path := v.Name, v.Path
	var back undo.Stack
	defer func() {
		if err != nil {
			back.Run(ctx, &err)
		}
	}()
	back.Add("forget volume", func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.entries, name)
		return nil
	})
	back.Add("remove folder", func(context.Context) error {
		return errors.Join(ignoreMissing(os.Remove(path)), ignoreMissing(os.Remove(filepath.Dir(path))))
	})
	if err := os.MkdirAll(v.Path, 0o755); err != nil {
		return spec.Volume{}, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	if v.Anonymous {
		s.db.Later(record(v)) // it belongs to a container, whose record follows
		return v, nil
	}
	if err := s.db.Update(ctx, record(v)); err != nil {
		return spec.Volume{}, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return v, nil
}

// existing answers for a volume that is there already, once it is made; one
// that goes away meanwhile makes room for a new one.
func (s *Set) existing(ctx context.Context, e *entry, config spec.VolumeConfig) (spec.Volume, error) {
	e.work.Lock()
	e.work.Unlock() //nolint:staticcheck // only waits for the maker or the remover
	s.mu.Lock()
	if s.entries[e.volume.Name] != e {
		s.mu.Unlock()
		return s.Create(ctx, config)
	}
	defer s.mu.Unlock()
	if len(config.Options) > 0 && !maps.Equal(config.Options, e.volume.Options) {
		return spec.Volume{}, errs.New(errs.Conflict, "volume %s exists with other options", e.volume.Name)
	}
	return copyOf(e.volume), nil
}

func anonymousName() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	return hex.EncodeToString(raw)
}

// checkName wants what is a good name of a folder everywhere.
func checkName(name string) error {
	if len(name) <= 128 && regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`).MatchString(name) {
		return nil
	}
	return errs.New(errs.Invalid, "volume name %.200q: want letters, digits, _, . and -, a letter or digit first, 128 at most", name)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}
