package container

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/signal"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/node/network"
	"berth/node/snapshot"
	"berth/spec"
)

// defaultStopTimeout is how long a stop waits before it kills, in seconds.
const defaultStopTimeout = 10

// complete fills in what the config leaves to the image and to the node.
func (s *Set) complete(config *spec.ContainerConfig, id string, image spec.ImageConfig) error {
	config.Runtime = orElse(config.Runtime, s.Runtime)
	config.CgroupParent = orElse(config.CgroupParent, s.CgroupParent)
	config.StopSignal = orElse(config.StopSignal, image.StopSignal)
	config.Health = mergeHealth(config.Health, image.Health)
	if len(image.Labels) > 0 {
		labels := maps.Clone(image.Labels)
		maps.Copy(labels, config.Labels)
		config.Labels = labels
	}
	if config.Restart.Name == "" {
		config.Restart.Name = "no"
	}
	var err error
	if config.Network.Mode, err = s.pinNetwork(config.Network.Mode); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if config.PIDMode, err = s.pin(config.PIDMode); err != nil {
		return fmt.Errorf("pid namespace: %w", err)
	}
	if config.IPCMode, err = s.pin(config.IPCMode); err != nil {
		return fmt.Errorf("ipc namespace: %w", err)
	}
	if config.Hostname == "" && config.UTSMode != "host" && config.Network.Mode != "host" && !strings.HasPrefix(config.Network.Mode, sharedPrefix) {
		config.Hostname = id[:12]
	}
	return nil
}

// sharedPrefix begins a mode that joins a namespace of another container.
const sharedPrefix = "container:"

// pin replaces the name in container:<name> by the id, which stays true when
// the container is renamed.
func (s *Set) pin(mode string) (string, error) {
	ref, ok := strings.CutPrefix(mode, sharedPrefix)
	if !ok {
		return mode, nil
	}
	c, err := s.find(ref)
	if err != nil {
		return "", err
	}
	return sharedPrefix + c.id, nil
}

// pinNetwork is pin for a network: names and addresses come along with it.
func (s *Set) pinNetwork(mode string) (string, error) {
	mode, err := s.pin(mode)
	if id, shared := strings.CutPrefix(mode, sharedPrefix); shared && err == nil {
		if c, err := s.find(id); err == nil && c.given.Load() != nil {
			return "", errs.New(errs.Unsupported, "container %s was made by another client: its network cannot be shared", c.name())
		}
	}
	return mode, err
}

// check fails with errs.Invalid where the config can never work.
func (s *Set) check(config spec.ContainerConfig) error {
	if err := checkWorkDir(config.WorkDir); err != nil {
		return err
	}
	if _, err := s.runtimeNamed(config.Runtime); err != nil {
		return errs.New(errs.Invalid, "there is no runtime named %q; there are %s: %w", config.Runtime, strings.Join(slices.Sorted(maps.Keys(s.Runtimes)), ", "), err)
	}
	if config.StopSignal != "" {
		if _, err := parseSignal(config.StopSignal); err != nil {
			return err
		}
	}
	if config.Security.Userns == "auto" && s.Idmap == nil {
		return errs.New(errs.Unsupported, "this node has no ids to give to a user namespace")
	}
	if err := checkRestart(config.Restart, config.AutoRemove); err != nil {
		return err
	}
	if err := checkHealth(config.Health); err != nil {
		return err
	}
	if err := checkNamespaces(config); err != nil {
		return err
	}
	if err := network.CheckChoice(config.Network); err != nil {
		return err
	}
	if _, err := bundle.Resources(config.Resources, s.Host); err != nil {
		return err
	}
	return checkMounts(config.Mounts)
}

func checkWorkDir(dir string) error {
	if dir != "" && !path.IsAbs(dir) {
		return errs.New(errs.Invalid, "the working directory %q is not an absolute path", dir)
	}
	return nil
}

func checkRestart(p spec.RestartPolicy, autoRemove bool) error {
	switch p.Name {
	case "no", "always", "unless-stopped":
		if p.MaxRetries != 0 {
			return errs.New(errs.Invalid, "restart policy %s takes no number of retries", p.Name)
		}
	case "on-failure":
		if p.MaxRetries < 0 {
			return errs.New(errs.Invalid, "restart policy on-failure: %d retries", p.MaxRetries)
		}
	default:
		return errs.New(errs.Invalid, "restart policy %q: want no, on-failure[:n], always or unless-stopped", p.Name)
	}
	if autoRemove && p.Name != "no" {
		return errs.New(errs.Invalid, "a container that is removed when it ends cannot have restart policy %s", p.Name)
	}
	return nil
}

func checkNamespaces(config spec.ContainerConfig) error {
	if mode := config.CgroupMode; mode != "" && mode != "private" && mode != "host" {
		return errs.New(errs.Invalid, "cgroup namespace %q: want private or host", mode)
	}
	for name, mode := range map[string]string{"pid": config.PIDMode, "ipc": config.IPCMode, "uts": config.UTSMode} {
		shared := strings.HasPrefix(mode, sharedPrefix) && name != "uts"
		private := mode == "" || mode == "private" || name == "ipc" && (mode == "shareable" || mode == "none")
		if !shared && !private && mode != "host" {
			return errs.New(errs.Invalid, "%s namespace %q: want nothing, host or container:<id>", name, mode)
		}
	}
	mode := config.Network.Mode
	if config.UTSMode == "host" && (config.Hostname != "" || config.Domainname != "") {
		return errs.New(errs.Invalid, "a container in the host's UTS namespace cannot have a hostname of its own")
	}
	if strings.HasPrefix(mode, sharedPrefix) && (len(config.Network.Ports) > 0 || config.Network.PublishAll) {
		return errs.New(errs.Invalid, "a container on another's network cannot publish ports of its own")
	}
	if strings.HasPrefix(mode, sharedPrefix) && config.Hostname != "" {
		return errs.New(errs.Invalid, "a container on another's network cannot have a hostname of its own")
	}
	return nil
}

func checkMounts(mounts []spec.MountPoint) error {
	seen := map[string]bool{}
	for _, m := range mounts {
		target := path.Clean(m.Target)
		switch {
		case !path.IsAbs(m.Target) || target == "/":
			return errs.New(errs.Invalid, "mount on %q: want an absolute path other than /", m.Target)
		case seen[target]:
			return errs.New(errs.Invalid, "two mounts on %s", target)
		case m.Type == "bind" && !path.IsAbs(m.Source):
			return errs.New(errs.Invalid, "bind %q on %s: want an absolute path on the host", m.Source, target)
		case m.Type != "bind" && m.Type != "volume" && m.Type != "tmpfs":
			return errs.New(errs.Invalid, "mount on %s of type %q: want bind, volume or tmpfs", target, m.Type)
		case m.Type == "tmpfs" && m.Source != "":
			return errs.New(errs.Invalid, "tmpfs on %s has no source", target)
		}
		seen[target] = true
	}
	return nil
}

// planMounts joins the mounts asked for with the volumes of the image that
// nothing else is mounted on.
func planMounts(asked []spec.MountPoint, volumes []string) []spec.Mounted {
	mounts := make([]spec.Mounted, 0, len(asked)+len(volumes))
	taken := map[string]bool{}
	for _, m := range asked {
		m.Target = path.Clean(m.Target)
		taken[m.Target] = true
		mounts = append(mounts, spec.Mounted{MountPoint: m})
	}
	for _, target := range volumes {
		if target = path.Clean("/" + target); !taken[target] && target != "/" {
			taken[target] = true
			mounts = append(mounts, spec.Mounted{MountPoint: spec.MountPoint{Type: "volume", Target: target}})
		}
	}
	// What is mounted below another comes after it.
	slices.SortStableFunc(mounts, func(a, b spec.Mounted) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	return mounts
}

func hasVolume(mounts []spec.Mounted) bool {
	return slices.ContainsFunc(mounts, func(m spec.Mounted) bool { return m.Type == "volume" })
}

// exposed are the ports that the image or the user says are listened on.
func exposed(choice spec.NetworkChoice, image []spec.Exposed) []spec.Exposed {
	all := slices.Concat(image, choice.Exposed)
	for _, p := range choice.Ports {
		for i := range max(p.Range, 1) {
			all = append(all, spec.Exposed(fmt.Sprintf("%d/%s", p.ContainerPort+i, orElse(p.Protocol, "tcp"))))
		}
	}
	for i, e := range all {
		if !strings.Contains(string(e), "/") {
			all[i] = e + "/tcp"
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// mergeHealth lays the user's check over the image's, field by field.
func mergeHealth(own, image *spec.HealthConfig) *spec.HealthConfig {
	if own == nil || image == nil {
		return firstOf(own, image)
	}
	merged := *own
	if len(merged.Test) == 0 {
		merged.Test = image.Test
	}
	merged.Interval = firstDuration(own.Interval, image.Interval)
	merged.Timeout = firstDuration(own.Timeout, image.Timeout)
	merged.StartPeriod = firstDuration(own.StartPeriod, image.StartPeriod)
	merged.StartInterval = firstDuration(own.StartInterval, image.StartInterval)
	if merged.Retries == 0 {
		merged.Retries = image.Retries
	}
	return &merged
}

func checkHealth(h *spec.HealthConfig) error {
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch {
	case h.Test[0] != "NONE" && h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL":
		return errs.New(errs.Invalid, "health check %q: want NONE, CMD or CMD-SHELL first", h.Test)
	case h.Test[0] != "NONE" && len(h.Test) < 2:
		return errs.New(errs.Invalid, "health check %s without a command", h.Test[0])
	case h.Interval < 0 || h.Timeout < 0 || h.StartPeriod < 0 || h.StartInterval < 0 || h.Retries < 0:
		return errs.New(errs.Invalid, "health check: times and retries cannot be negative")
	case short(h.Interval) || short(h.Timeout) || short(h.StartInterval):
		return errs.New(errs.Invalid, "health check: times below a millisecond")
	}
	return nil
}

func short(d time.Duration) bool { return d > 0 && d < time.Millisecond }

func firstDuration(a, b time.Duration) time.Duration {
	if a != 0 {
		return a
	}
	return b
}

func firstOf[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// samePlatform compares os/arch[/variant]; a missing variant fits every one.
func samePlatform(a, b string) bool {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] {
			return false
		}
	}
	return min(len(as), len(bs)) >= 2
}

// parseSignal reads TERM, SIGTERM, 15 or RTMIN+3.
func parseSignal(name string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return 0, errs.New(errs.Invalid, "no such signal: %q", name)
	}
	return sig, nil
}

// idmap is the ids of the container's user namespace, nil where it has none.
func (s *Set) idmap(c *spec.Container) *bundle.Idmap {
	userns := c.Config.Security.Userns
	if userns == "auto" || userns == "" && s.Remap && !c.Config.Security.Privileged {
		return s.Idmap
	}
	return nil
}

func idmapLabels(m *bundle.Idmap) map[string]string {
	var uids, gids []snapshot.IDMap
	for _, id := range m.UIDs {
		uids = append(uids, snapshot.IDMap{Container: id.ContainerID, Host: id.HostID, Size: id.Size})
	}
	for _, id := range m.GIDs {
		gids = append(gids, snapshot.IDMap{Container: id.ContainerID, Host: id.HostID, Size: id.Size})
	}
	return snapshot.IDMapLabels(uids, gids)
}
