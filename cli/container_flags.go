package cli

import (
	"cmp"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"berth/base/errs"
	"berth/cli/option"
	"berth/spec"
)

// containerFlags are what run and create take.
type containerFlags struct {
	resourceFlags

	name, platform, entrypoint, workDir, user, hostname, domainname string
	env, envFiles, labels, labelFiles, annotations, groups          []string
	interactive, tty, autoRemove, withInit                          bool
	stopSignal, restart, runtime                                    string
	stopTimeout                                                     int
	logDriver                                                       string
	logOptions                                                      []string

	privileged, readOnly, oomKillDisable bool
	capAdd, capDrop, securityOptions     []string
	userns, pid, ipc, uts                string
	cgroupns, cgroupParent               string
	oomScoreAdj                          int

	volumes, mounts, tmpfs, devices, rlimits, sysctls []string
	shmSize                                           string
	readBps, writeBps, readIOps, writeIOps            []string

	networks, aliases, publish, expose []string
	ip, ip6, mac                       string
	publishAll                         bool
	dns, dnsSearch, dnsOptions, hosts  []string

	health     healthFlags
	pull       string
	quiet      bool
	cidFile    string
	insecure   bool
	detachKeys string
}

type healthFlags struct {
	command                                       string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
	none                                          bool
}

func (f *containerFlags) add(flags *pflag.FlagSet) {
	flags.SetInterspersed(false) // what follows the image is the command's
	f.resourceFlags.add(flags)
	f.addProcess(flags)
	f.addSecurity(flags)
	f.addStorage(flags)
	f.addNetwork(flags)
	f.addHealth(flags)
	flags.StringVar(&f.pull, "pull", "missing", "when to pull the image: always, missing or never")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "do not show how the pull goes")
	flags.StringVar(&f.platform, "platform", "", "os/arch[/variant] of the image")
	flags.BoolVar(&f.insecure, "insecure", false, "pull over plain HTTP and with unknown certificates")
	flags.StringVar(&f.cidFile, "cidfile", "", "write the container's id to a file that does not exist yet")
}

func (f *containerFlags) addProcess(flags *pflag.FlagSet) {
	flags.StringVar(&f.name, "name", "", "name of the container; made up when not given")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "keep stdin open")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the container a terminal")
	flags.BoolVar(&f.autoRemove, "rm", false, "remove the container, and its anonymous volumes, when it has ended")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set a variable: NAME=value, or NAME to take over yours")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "read variables from a file")
	flags.StringVar(&f.entrypoint, "entrypoint", "", "program to run instead of the image's entrypoint; \"\" for none")
	flags.StringVarP(&f.workDir, "workdir", "w", "", "folder to start in")
	flags.StringVarP(&f.user, "user", "u", "", "name or id, and optionally :group")
	flags.StringArrayVar(&f.groups, "group-add", nil, "further group of the user, by name or id")
	flags.StringVarP(&f.hostname, "hostname", "h", "", "host name in the container")
	flags.StringVar(&f.domainname, "domainname", "", "domain name in the container")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "set a label: key=value")
	flags.StringArrayVar(&f.labelFiles, "label-file", nil, "read labels from a file")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "hand key=value to the OCI runtime")
	flags.StringVar(&f.restart, "restart", "no", "start again when it ends: no, on-failure[:tries], always, unless-stopped")
	flags.StringVar(&f.stopSignal, "stop-signal", "", "signal that stop sends")
	flags.IntVar(&f.stopTimeout, "stop-timeout", 0, "seconds that stop waits before it kills (default 10)")
	flags.BoolVar(&f.withInit, "init", false, "run a small init as process 1 that forwards signals and reaps")
	flags.StringVar(&f.runtime, "runtime", "", "OCI runtime: runc, crun or one of the node's configuration")
	flags.StringVar(&f.logDriver, "log-driver", "", "json-file or local; both mean Berth's own log files")
	flags.StringArrayVar(&f.logOptions, "log-opt", nil, "max-size=SIZE of a log file, max-file=NUMBER of them")
	flags.StringVar(&f.detachKeys, "detach-keys", "", "keys that detach from a terminal (default ctrl-p,ctrl-q)")
}

func (f *containerFlags) addSecurity(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.capAdd, "cap-add", nil, "add a Linux capability, or ALL")
	flags.StringArrayVar(&f.capDrop, "cap-drop", nil, "drop a Linux capability, or ALL")
	flags.BoolVar(&f.privileged, "privileged", false, "all that the node itself may do, and all devices")
	flags.StringArrayVar(&f.securityOptions, "security-opt", nil, "no-new-privileges, seccomp=unconfined|FILE, unmask=all")
	flags.StringVar(&f.userns, "userns", "", "user namespace: host or auto")
	flags.StringVar(&f.pid, "pid", "", "PID namespace: host or container:NAME")
	flags.StringVar(&f.ipc, "ipc", "", "IPC namespace: private, host or container:NAME")
	flags.StringVar(&f.uts, "uts", "", "UTS namespace: host")
	flags.StringVar(&f.cgroupns, "cgroupns", "", "cgroup namespace: private or host")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "cgroup to make the container's in")
	flags.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "never kill it for lack of memory")
	flags.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "how readily the kernel kills it for memory, -1000 to 1000")
}

func (f *containerFlags) addStorage(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&f.volumes, "volume", "v", nil, "mount a volume or path: [source:]target[:ro]")
	flags.StringArrayVar(&f.mounts, "mount", nil, "mount: type=bind|volume|tmpfs,source=…,target=…[,readonly]")
	flags.StringArrayVar(&f.tmpfs, "tmpfs", nil, "mount a tmpfs: target[:size=64m,mode=1777]")
	flags.BoolVar(&f.readOnly, "read-only", false, "make the root file system read-only")
	flags.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm (default 64m)")
	flags.StringArrayVar(&f.rlimits, "ulimit", nil, "resource limit of processes: name=soft[:hard]")
	flags.StringArrayVar(&f.sysctls, "sysctl", nil, "set a kernel parameter of its namespaces: key=value")
	flags.StringArrayVar(&f.devices, "device", nil, "give it a device: path[:target][:rwm]")
	flags.StringArrayVar(&f.readBps, "device-read-bps", nil, "limit reading from a device: /dev/name:1mb a second")
	flags.StringArrayVar(&f.writeBps, "device-write-bps", nil, "limit writing to a device: /dev/name:1mb a second")
	flags.StringArrayVar(&f.readIOps, "device-read-iops", nil, "limit reads from a device: /dev/name:1000 a second")
	flags.StringArrayVar(&f.writeIOps, "device-write-iops", nil, "limit writes to a device: /dev/name:1000 a second")
}

func (f *containerFlags) addNetwork(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.networks, "network", nil, "network to join, host, none, container:NAME, or name=…,alias=…,ip=…")
	flags.StringArrayVar(&f.networks, "net", nil, "the same as --network")
	_ = flags.MarkHidden("net")
	flags.StringArrayVar(&f.aliases, "network-alias", nil, "further name on the network")
	flags.StringVar(&f.ip, "ip", "", "IPv4 address on the network")
	flags.StringVar(&f.ip6, "ip6", "", "IPv6 address on the network")
	flags.StringVar(&f.mac, "mac-address", "", "MAC address, as in 92:d0:c6:0a:29:33")
	flags.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port: [[address:]port:]port[/tcp|udp]")
	flags.BoolVarP(&f.publishAll, "publish-all", "P", false, "publish all exposed ports on free ones")
	flags.StringArrayVar(&f.expose, "expose", nil, "say that it listens on a port or a range")
	flags.StringArrayVar(&f.dns, "dns", nil, "DNS server")
	flags.StringArrayVar(&f.dnsSearch, "dns-search", nil, "domain to search names in")
	flags.StringArrayVar(&f.dnsOptions, "dns-option", nil, "option of resolv.conf")
	flags.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts: name:address, or name:host-gateway")
}

func (f *containerFlags) addHealth(flags *pflag.FlagSet) {
	flags.StringVar(&f.health.command, "health-cmd", "", "command that checks the container's health")
	flags.DurationVar(&f.health.interval, "health-interval", 0, "time between checks (default 30s)")
	flags.DurationVar(&f.health.timeout, "health-timeout", 0, "most time of a check (default 30s)")
	flags.DurationVar(&f.health.startPeriod, "health-start-period", 0, "time to come up, in which failures do not count")
	flags.DurationVar(&f.health.startInterval, "health-start-interval", 0, "time between checks while it comes up (default 5s)")
	flags.IntVar(&f.health.retries, "health-retries", 0, "failures in a row that make it unhealthy (default 3)")
	flags.BoolVar(&f.health.none, "no-healthcheck", false, "do not run the image's check")
}

// config is what the flags ask for. args are the image and the command.
func (f *containerFlags) config(flags *pflag.FlagSet, args []string) (spec.ContainerConfig, error) {
	c := spec.ContainerConfig{
		Name: f.name, Image: args[0], Platform: f.platform,
		WorkDir: f.workDir, User: f.user, Groups: f.groups, Hostname: f.hostname, Domainname: f.domainname,
		TTY: f.tty, OpenStdin: f.interactive, AutoRemove: f.autoRemove, Init: f.withInit,
		StopSignal: f.stopSignal, Runtime: f.runtime,
		PIDMode: f.pid, IPCMode: f.ipc, UTSMode: f.uts,
		CgroupMode: f.cgroupns, CgroupParent: f.cgroupParent, OOMScoreAdj: f.oomScoreAdj,
	}
	if len(args) > 1 {
		c.Command = args[1:]
	}
	if flags.Changed("entrypoint") {
		c.Entrypoint = []string{}
		if f.entrypoint != "" {
			c.Entrypoint = []string{f.entrypoint}
		}
	}
	if flags.Changed("stop-timeout") {
		c.StopTimeout = &f.stopTimeout
	}
	if c.IPCMode == "private" || c.IPCMode == "shareable" { // a namespace of its own, which others may join
		c.IPCMode = ""
	}
	for _, part := range []func(*spec.ContainerConfig) error{
		f.words, f.rules, f.security, f.limits, f.storage, f.network, f.healthCheck,
	} {
		if err := part(&c); err != nil {
			return spec.ContainerConfig{}, err
		}
	}
	return c, nil
}

// words are environment, labels and annotations.
func (f *containerFlags) words(c *spec.ContainerConfig) (err error) {
	if c.Env, err = option.Env(f.envFiles, f.env, os.LookupEnv); err != nil {
		return err
	}
	if c.Labels, err = option.Labels(f.labelFiles, f.labels); err != nil {
		return err
	}
	if c.Annotations, err = option.Map(f.annotations); err != nil {
		return err
	}
	c.Sysctls, err = option.Map(f.sysctls)
	return err
}

// rules are the restart policy and the bounds of logs.
func (f *containerFlags) rules(c *spec.ContainerConfig) (err error) {
	if c.Restart, err = option.Restart(f.restart); err != nil {
		return err
	}
	if f.autoRemove && !slices.Contains([]string{"", "no"}, c.Restart.Name) {
		return errs.New(errs.Invalid, "--rm and --restart %s contradict each other", f.restart)
	}
	if !slices.Contains([]string{"", "json-file", "local"}, f.logDriver) {
		return errs.New(errs.Unsupported, "log driver %q: Berth keeps logs in files of its own; leave --log-driver out", f.logDriver)
	}
	if !slices.Contains([]string{"always", "missing", "never"}, f.pull) {
		return errs.New(errs.Invalid, "--pull %q: expected always, missing or never", f.pull)
	}
	c.Log, err = option.LogOptions(f.logOptions)
	return err
}

func (f *containerFlags) security(c *spec.ContainerConfig) error {
	c.Security = spec.Security{
		Privileged: f.privileged, CapAdd: f.capAdd, CapDrop: f.capDrop,
		ReadOnlyRoot: f.readOnly, Userns: f.userns,
	}
	return option.Security(&c.Security, f.securityOptions)
}

func (f *containerFlags) limits(c *spec.ContainerConfig) (err error) {
	if c.Resources, err = f.resources(); err != nil {
		return err
	}
	c.Resources.OOMKillDisable = f.oomKillDisable
	r := &c.Resources
	for _, t := range []struct {
		to    *[]spec.DeviceThrottle
		texts []string
		read  func(string) (spec.DeviceThrottle, error)
	}{
		{&r.DeviceReadBps, f.readBps, option.BytesPerSecond},
		{&r.DeviceWriteBps, f.writeBps, option.BytesPerSecond},
		{&r.DeviceReadIOps, f.readIOps, option.PerSecond},
		{&r.DeviceWriteIOps, f.writeIOps, option.PerSecond},
	} {
		if *t.to, err = readAll(t.texts, t.read); err != nil {
			return err
		}
	}
	if c.Rlimits, err = readAll(f.rlimits, option.Rlimit); err != nil {
		return err
	}
	if c.Devices, err = readAll(f.devices, option.Device); err != nil {
		return err
	}
	c.ShmSize, err = option.Bytes(f.shmSize)
	return err
}

func (f *containerFlags) storage(c *spec.ContainerConfig) error {
	dir, err := os.Getwd()
	if err != nil {
		return errs.New(errs.Invalid, "the folder that paths begin in: %w", err)
	}
	volumes, err := readAll(f.volumes, func(s string) (spec.MountPoint, error) { return option.Volume(s, dir) })
	if err != nil {
		return err
	}
	mounts, err := readAll(f.mounts, func(s string) (spec.MountPoint, error) { return option.Mount(s, dir) })
	if err != nil {
		return err
	}
	tmpfs, err := readAll(f.tmpfs, option.Tmpfs)
	if err != nil {
		return err
	}
	c.Mounts = slices.Concat(volumes, mounts, tmpfs)
	seen := map[string]bool{}
	for _, m := range c.Mounts {
		if seen[m.Target] {
			return errs.New(errs.Invalid, "two mounts have the target %s", m.Target)
		}
		seen[m.Target] = true
	}
	return nil
}

func (f *containerFlags) network(c *spec.ContainerConfig) (err error) {
	n := spec.NetworkChoice{PublishAll: f.publishAll, DNS: f.dns, DNSSearch: f.dnsSearch, DNSOptions: f.dnsOptions}
	if n.Endpoints, err = readAll(f.networks, option.Network); err != nil {
		return err
	}
	if n.Ports, err = readAll(f.publish, option.Publish); err != nil {
		return err
	}
	if n.ExtraHosts, err = readAll(f.hosts, option.Host); err != nil {
		return err
	}
	for _, text := range f.expose {
		exposed, err := option.Expose(text)
		if err != nil {
			return err
		}
		n.Exposed = append(n.Exposed, exposed...)
	}
	if err := f.ownAddresses(&n); err != nil {
		return err
	}
	c.Network = n
	return nil
}

// ownAddresses gives --ip, --network-alias and the like to the first network.
func (f *containerFlags) ownAddresses(n *spec.NetworkChoice) error {
	asked := len(f.aliases) > 0 || f.ip != "" || f.ip6 != "" || f.mac != ""
	if len(n.Endpoints) == 0 && !asked {
		return nil
	}
	if len(n.Endpoints) == 0 {
		n.Endpoints = []spec.EndpointConfig{{}}
	}
	first := &n.Endpoints[0]
	n.Mode = first.Network
	if n.Mode == "default" {
		n.Mode = ""
	}
	first.Network = cmp.Or(n.Mode, "bridge")
	first.Aliases = append(first.Aliases, f.aliases...)
	first.IPv4 = cmp.Or(f.ip, first.IPv4)
	first.IPv6 = cmp.Or(f.ip6, first.IPv6)
	first.MAC = cmp.Or(f.mac, first.MAC)
	if isShared(n.Mode) {
		if len(n.Endpoints) > 1 || asked {
			return errs.New(errs.Invalid, "--network %s cannot go with other networks, addresses or aliases", n.Mode)
		}
		n.Endpoints = nil
		return nil
	}
	return option.Addresses(*first)
}

// isShared: these modes are no network with addresses to give out.
func isShared(mode string) bool {
	return mode == "host" || mode == "none" || len(mode) > 10 && mode[:10] == "container:"
}

func (f *containerFlags) healthCheck(c *spec.ContainerConfig) error {
	h := f.health
	tuned := h.interval != 0 || h.timeout != 0 || h.startPeriod != 0 || h.startInterval != 0 || h.retries != 0
	switch {
	case h.none && (tuned || h.command != ""):
		return errs.New(errs.Invalid, "--no-healthcheck and --health-… contradict each other")
	case h.none:
		c.Health = &spec.HealthConfig{Test: []string{"NONE"}}
		return nil
	case h.interval < 0 || h.timeout < 0 || h.startPeriod < 0 || h.startInterval < 0 || h.retries < 0:
		return errs.New(errs.Invalid, "--health-… values cannot be negative")
	case h.command == "" && !tuned:
		return nil
	}
	c.Health = &spec.HealthConfig{
		Interval: h.interval, Timeout: h.timeout, StartPeriod: h.startPeriod,
		StartInterval: h.startInterval, Retries: h.retries,
	}
	if h.command != "" {
		c.Health.Test = []string{"CMD-SHELL", h.command}
	}
	return nil
}

// readAll reads each text; no texts make nil.
func readAll[T any](texts []string, read func(string) (T, error)) ([]T, error) {
	var out []T
	for _, text := range texts {
		v, err := read(text)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
