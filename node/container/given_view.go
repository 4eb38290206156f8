package container

import (
	"encoding/json"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// nameLabel is where nerdctl says what people call a container.
const nameLabel = "nerdctl/name"

// RuntimeV2 is the name by which clients ask for the node's usual runtime.
const RuntimeV2 = "io.containerd.runc.v2"

// viewOf is a given container as everybody else sees it, before it has run. A
// spec that is none says nothing of it; CreateTask will complain.
func viewOf(g *spec.Given) *spec.Container {
	oci, err := ociSpec(g)
	if err != nil {
		oci = &specs.Spec{}
	}
	c := &spec.Container{
		ID:        g.ID,
		Name:      orElse(orElse(g.Name, g.Labels[nameLabel]), shortName(g.ID)),
		Namespace: g.Namespace,
		Pod:       g.Sandbox,
		Quiet:     g.Quiet,
		Created:   g.Created,
		Image:     g.Image,
		Runtime:   g.Runtime,
		State:     spec.ContainerState{Status: spec.Created},
		Mounts:    givenBinds(oci),
		Networks:  []spec.Endpoint{},
		Ports:     []spec.PortMapping{},
		Snapshot:  g.SnapshotKey,
		LogPath:   g.Log,
	}
	c.Config = spec.ContainerConfig{
		Name:        c.Name,
		Image:       g.Image,
		Hostname:    oci.Hostname,
		Domainname:  oci.Domainname,
		Labels:      g.Labels,
		Annotations: oci.Annotations,
		StopSignal:  g.Labels[stopSignalLabel],
		Restart:     restartWish(g.Labels),
		Runtime:     g.Runtime,
		OpenStdin:   g.Stdin,
		StdinOnce:   g.StdinOnce,
	}
	if p := oci.Process; p != nil {
		c.Args = p.Args
		c.Config.Command, c.Config.Env, c.Config.WorkDir = p.Args, p.Env, p.Cwd
		c.Config.User, c.Config.TTY = userOf(p.User), p.Terminal
	}
	if oci.Root != nil {
		c.Config.Security.ReadOnlyRoot = oci.Root.Readonly
	}
	if explicitlyStopped(g.Labels) {
		c.State.StoppedBy = "user"
	}
	c.State.RestartCount, _ = strconv.Atoi(g.Labels[restartCount])
	return c
}

// shortName is what people call a container whose client made up an id.
func shortName(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

// stopSignalLabel is where clients keep what the image says.
const stopSignalLabel = "io.containerd.image.config.stop-signal"

// ociSpec reads what the client wrote. A container without one is only a name
// for something and can have no task.
func ociSpec(g *spec.Given) (*specs.Spec, error) {
	if g.Spec == nil || len(g.Spec.Value) == 0 {
		return nil, errs.New(errs.Invalid, "container %s has no OCI spec", g.ID)
	}
	oci := &specs.Spec{}
	if err := json.Unmarshal(g.Spec.Value, oci); err != nil {
		return nil, errs.New(errs.Invalid, "the OCI spec of container %s: %w", g.ID, err)
	}
	return oci, nil
}

func userOf(u specs.User) string {
	if u.Username != "" {
		return u.Username
	}
	if u.UID == 0 && u.GID == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(u.UID), 10) + ":" + strconv.FormatUint(uint64(u.GID), 10)
}

// givenBinds are the files of the host that the container sees.
func givenBinds(oci *specs.Spec) []spec.Mounted {
	binds := []spec.Mounted{}
	for _, m := range oci.Mounts {
		if m.Type != "bind" || !strings.HasPrefix(m.Source, "/") {
			continue
		}
		bind := spec.Mounted{Host: m.Source}
		bind.Type, bind.Source, bind.Target = "bind", m.Source, m.Destination
		for _, option := range m.Options {
			bind.ReadOnly = bind.ReadOnly || option == "ro"
		}
		binds = append(binds, bind)
	}
	return binds
}

// asGiven gives a process the rights that the client gave the container, and
// not those that the node would.
func asGiven(p *specs.Process, g *spec.Given, config spec.ExecConfig) error {
	oci, err := ociSpec(g)
	if err != nil || oci.Process == nil || config.Privileged {
		return err
	}
	first := oci.Process
	p.NoNewPrivileges, p.ApparmorProfile, p.SelinuxLabel = first.NoNewPrivileges, first.ApparmorProfile, first.SelinuxLabel
	p.Rlimits, p.OOMScoreAdj = first.Rlimits, first.OOMScoreAdj
	if config.User == "" {
		p.User = first.User
	}
	p.Capabilities = rightsFor(p.User, first)
	return nil
}

// rightsFor are the capabilities of another user in the same container: root
// has what there is to have, and nobody else anything.
func rightsFor(u specs.User, first *specs.Process) *specs.LinuxCapabilities {
	if first.Capabilities == nil || u.UID == first.User.UID {
		return first.Capabilities
	}
	caps := &specs.LinuxCapabilities{Bounding: first.Capabilities.Bounding}
	if u.UID == 0 {
		caps.Effective, caps.Permitted = caps.Bounding, caps.Bounding
	}
	return caps
}
