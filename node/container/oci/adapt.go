package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth/base/errs"
)

// A config is a bundle's config.json, of which only what is known here is
// looked into.
type config struct {
	file    string
	data    []byte
	fields  map[string]json.RawMessage
	linux   map[string]json.RawMessage
	changed bool
}

func readConfig(bundle string) (*config, error) {
	c := &config{file: filepath.Join(bundle, "config.json")}
	var err error
	if c.data, err = os.ReadFile(c.file); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if err := json.Unmarshal(c.data, &c.fields); err != nil {
		return nil, errs.New(errs.Invalid, "bundle: %w", err)
	}
	if c.fields == nil { // "null" is no error to json
		return nil, errs.New(errs.Invalid, "bundle: config.json is no object")
	}
	if c.fields["linux"] != nil {
		if err := json.Unmarshal(c.fields["linux"], &c.linux); err != nil {
			return nil, errs.New(errs.Invalid, "bundle: linux: %w", err)
		}
	}
	if c.linux == nil {
		c.linux = map[string]json.RawMessage{}
	}
	return c, nil
}

// settleCgroup writes down a whole path of a cgroup. Where a client names
// none, or one that is relative, runtimes would begin at the cgroup that they
// themselves happen to be in.
func (c *config) settleCgroup(id string) error {
	named := ""
	if c.linux["cgroupsPath"] != nil {
		if err := json.Unmarshal(c.linux["cgroupsPath"], &named); err != nil {
			return errs.New(errs.Invalid, "bundle: cgroupsPath: %w", err)
		}
	}
	path := filepath.Clean("/" + named)
	switch {
	case named == "":
		path = "/berth/" + id
	case path == "/":
		return errs.New(errs.Invalid, "bundle: cgroupsPath %q: the root of all cgroups is no container's", named)
	}
	if path == named {
		return nil
	}
	return c.set(c.linux, "cgroupsPath", path)
}

// lowerVersion names an older specification. crun until 1.15 takes none but
// 1.0 and 1.1, and no crun looks at the version for anything else: it reads the
// fields it knows, whatever the version says.
func (c *config) lowerVersion() error {
	return c.set(c.fields, "ociVersion", oldVersion)
}

// later: the version is none that every program takes.
func (c *config) later() bool {
	version := ""
	_ = json.Unmarshal(c.fields["ociVersion"], &version)
	return !strings.HasPrefix(version, "1.0.") && !strings.HasPrefix(version, "1.1.")
}

const oldVersion = "1.1.0"

func (c *config) set(in map[string]json.RawMessage, name, value string) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	in[name], c.changed = data, true
	return nil
}

// write replaces config.json if it has changed.
func (c *config) write() error {
	if !c.changed {
		return nil
	}
	var err error
	if c.fields["linux"], err = json.Marshal(c.linux); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if c.data, err = json.Marshal(c.fields); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := os.WriteFile(c.file+".new", c.data, 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	c.changed = false
	if err := os.Rename(c.file+".new", c.file); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}
