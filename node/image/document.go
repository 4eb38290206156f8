package image

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/manifest"
	"berth/spec"
)

// document is an image's configuration: OCI's, with what docker adds to it.
type document struct {
	Created *time.Time `json:"created,omitempty"`
	Author  string     `json:"author,omitempty"`
	ocispec.Platform
	Config  settings          `json:"config"`
	RootFS  ocispec.RootFS    `json:"rootfs"`
	History []ocispec.History `json:"history,omitempty"`
}

type settings struct {
	ocispec.ImageConfig
	OnBuild []string `json:"OnBuild,omitempty"`
	Shell   []string `json:"Shell,omitempty"`
	// Check is docker's alone.
	Check *check `json:"Healthcheck,omitempty"`
}

type check struct {
	Test          []string      `json:"Test,omitempty"`
	Interval      time.Duration `json:"Interval,omitempty"`
	Timeout       time.Duration `json:"Timeout,omitempty"`
	StartPeriod   time.Duration `json:"StartPeriod,omitempty"`
	StartInterval time.Duration `json:"StartInterval,omitempty"`
	Retries       int           `json:"Retries,omitempty"`
}

func parseDocument(id digest.Digest, body []byte) (document, error) {
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return d, errs.New(errs.Invalid, "configuration %s: %w", id, err)
	}
	return d, nil
}

// image fills in what the configuration says of an image.
func (d *document) image(id digest.Digest) spec.Image {
	image := spec.Image{
		ID: id.String(), Platform: manifest.Format(d.Platform), Author: d.Author,
		Labels: d.Config.Labels, Config: d.Config.spec(), Layers: []string{},
	}
	if d.Created != nil {
		image.Created = d.Created.UTC()
	}
	for _, diff := range d.RootFS.DiffIDs {
		image.Layers = append(image.Layers, diff.String())
	}
	return image
}

func (c *settings) spec() spec.ImageConfig {
	config := spec.ImageConfig{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Command: c.Cmd, WorkDir: c.WorkingDir,
		Labels: c.Labels, StopSignal: c.StopSignal, Volumes: slices.Sorted(maps.Keys(c.Volumes)),
	}
	for _, port := range slices.Sorted(maps.Keys(c.ExposedPorts)) {
		config.ExposedPorts = append(config.ExposedPorts, spec.Exposed(port))
	}
	if h := c.Check; h != nil {
		config.Health = &spec.HealthConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout,
			StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	return config
}

// set takes over config and leaves the rest as it is.
func (c *settings) set(config spec.ImageConfig) {
	c.User, c.Env, c.Entrypoint, c.Cmd = config.User, config.Env, config.Entrypoint, config.Command
	c.WorkingDir, c.Labels, c.StopSignal = config.WorkDir, config.Labels, config.StopSignal
	c.ExposedPorts, c.Volumes, c.Check = nil, nil, nil
	for _, port := range config.ExposedPorts {
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		text := string(port)
		if !strings.Contains(text, "/") {
			text += "/tcp"
		}
		c.ExposedPorts[text] = struct{}{}
	}
	for _, volume := range config.Volumes {
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[volume] = struct{}{}
	}
	if h := config.Health; h != nil {
		c.Check = &check{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout,
			StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
}

func cloneConfig(c spec.ImageConfig) spec.ImageConfig {
	c.Env, c.Entrypoint, c.Command = slices.Clone(c.Env), slices.Clone(c.Entrypoint), slices.Clone(c.Command)
	c.ExposedPorts, c.Volumes, c.Labels = slices.Clone(c.ExposedPorts), slices.Clone(c.Volumes), maps.Clone(c.Labels)
	if c.Health != nil {
		health := *c.Health
		health.Test = slices.Clone(health.Test)
		c.Health = &health
	}
	return c
}
