package bundle

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// Args is what a container runs: its own entrypoint and command where it has
// them, else the image's. An entrypoint of its own drops the image's command.
// None at all is errs.Invalid.
func Args(c spec.ContainerConfig, image spec.ImageConfig) ([]string, error) {
	entrypoint, command := c.Entrypoint, c.Command
	if entrypoint == nil {
		entrypoint = image.Entrypoint
		if command == nil {
			command = image.Command
		}
	}
	args := slices.Concat(entrypoint, command)
	if len(args) == 0 {
		return nil, errs.New(errs.Invalid, "no command: neither the container nor its image names one")
	}
	return args, nil
}

// process is the container's first process.
func process(in Input, r root) (*specs.Process, error) {
	c := in.Container.Config
	args := in.Container.Args
	if len(args) == 0 {
		var err error
		if args, err = Args(c, in.Image); err != nil {
			return nil, err
		}
	}
	u, home, err := lookUp(r, firstOf(c.User, in.Image.User), c.Groups)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(c.Security, in.Host)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(c.Rlimits, in.Host)
	if err != nil {
		return nil, err
	}
	score := oomScore(c.OOMScoreAdj, in.Host)
	return &specs.Process{
		Terminal:        c.TTY,
		User:            u,
		Args:            args,
		Env:             withHome(env(in.Image.Env, c.Env, hostname(in), c.TTY), home),
		Cwd:             path.Join("/", firstOf(c.WorkDir, in.Image.WorkDir)),
		Capabilities:    grant(caps, u.UID),
		Rlimits:         limits,
		NoNewPrivileges: c.Security.NoNewPrivileges,
		OOMScoreAdj:     &score,
	}, nil
}

// ExecInput is what a further process of a container is made of.
type ExecInput struct {
	Container spec.Container
	Image     spec.ImageConfig
	Host      Host
	Rootfs    string
	Hostname  string // as in Input
	Config    spec.ExecConfig
}

// Exec makes the process of an exec: with the container's user, environment,
// directory and rights, but for what it asks for itself.
func Exec(in ExecInput) (*specs.Process, error) {
	c, e := in.Container.Config, in.Config
	if len(e.Command) == 0 {
		return nil, errs.New(errs.Invalid, "no command")
	}
	r, err := openRoot(in.Rootfs)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	groups := c.Groups
	if e.User != "" {
		groups = nil // they were given to the container's user, not to this one
	}
	u, home, err := lookUp(r, firstOf(e.User, c.User, in.Image.User), groups)
	if err != nil {
		return nil, err
	}
	security := c.Security
	if e.Privileged {
		security = spec.Security{Privileged: true}
	}
	caps, err := capabilities(security, in.Host)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(c.Rlimits, in.Host)
	if err != nil {
		return nil, err
	}
	name := firstOf(in.Hostname, Hostname(in.Container))
	score := oomScore(c.OOMScoreAdj, in.Host)
	return &specs.Process{
		Terminal:        e.TTY,
		User:            u,
		Args:            e.Command,
		Env:             withHome(merge(env(in.Image.Env, c.Env, name, e.TTY), e.Env), home),
		Cwd:             path.Join("/", firstOf(e.WorkDir, c.WorkDir, in.Image.WorkDir)),
		Capabilities:    grant(caps, u.UID),
		Rlimits:         limits,
		NoNewPrivileges: c.Security.NoNewPrivileges,
		OOMScoreAdj:     &score,
	}, nil
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// env is the environment without HOME: defaults, then the image's, then the
// container's.
func env(image, own []string, hostname string, tty bool) []string {
	list := []string{defaultPath, "HOSTNAME=" + hostname}
	if tty {
		list = append(list, "TERM=xterm")
	}
	return merge(merge(list, image), own)
}

// merge sets variables; a name without = takes one away.
func merge(list, with []string) []string {
	list = slices.Clone(list)
	for _, entry := range with {
		name, _, set := strings.Cut(entry, "=")
		at := slices.IndexFunc(list, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		switch {
		case set && at >= 0:
			list[at] = entry
		case set:
			list = append(list, entry)
		case at >= 0:
			list = slices.Delete(list, at, at+1)
		}
	}
	return list
}

// withHome sets HOME, unless somebody did.
func withHome(list []string, home string) []string {
	if slices.ContainsFunc(list, func(v string) bool { return strings.HasPrefix(v, "HOME=") }) {
		return list
	}
	return append(list, "HOME="+home)
}

// oomScore is clamped to what the kernel lets this node set.
func oomScore(asked int, h Host) int {
	if !h.can("CAP_SYS_RESOURCE") {
		asked = max(asked, h.OOMScoreAdj)
	}
	return min(max(asked, -1000), 1000)
}

// rlimits checks limits and names them as the spec does.
func rlimits(asked []spec.Rlimit, h Host) ([]specs.POSIXRlimit, error) {
	var list []specs.POSIXRlimit
	for _, l := range asked {
		name := strings.TrimPrefix(strings.ToLower(l.Name), "rlimit_")
		if _, known := rlimitNumbers()[name]; !known {
			return nil, errs.New(errs.Invalid, "rlimit %q: no such limit", l.Name)
		}
		if l.Soft > l.Hard {
			return nil, errs.New(errs.Invalid, "rlimit %s: the soft limit %d is above the hard limit %d", name, l.Soft, l.Hard)
		}
		if most, known := h.Rlimits[name]; known && l.Hard > most && !h.can("CAP_SYS_RESOURCE") {
			return nil, errs.New(errs.Unsupported, "rlimit %s: this node may give at most %d", name, most)
		}
		list = append(list, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Hard: l.Hard, Soft: l.Soft})
	}
	return list, nil
}

func rlimitNumbers() map[string]int {
	return map[string]int{
		"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
		"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
		"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
		"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
		"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
	}
}

// firstOf is the first that is not empty.
func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
