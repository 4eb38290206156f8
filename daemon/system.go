package daemon

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/image/remote"
	"berth/spec"
)

// Version implements rest.System.
func (n *node) Version() spec.Version { return n.config.Version }

// Info implements rest.System.
func (n *node) Info(ctx context.Context) (spec.Info, error) {
	containers, err := n.containers.List(ctx, true, nil)
	if err != nil {
		return spec.Info{}, err
	}
	images, err := n.images.List(ctx, nil)
	if err != nil {
		return spec.Info{}, err
	}
	var memory unix.Sysinfo_t
	if err := unix.Sysinfo(&memory); err != nil {
		return spec.Info{}, fmt.Errorf("read the machine's memory: %w", err)
	}
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return spec.Info{}, fmt.Errorf("read the kernel's name: %w", err)
	}
	info := spec.Info{
		ID: n.id, Name: n.host.Hostname, Version: n.config.Version, Started: n.started,
		Kernel: unix.ByteSliceToString(kernel.Release[:]), OS: osName(), Architecture: runtime.GOARCH,
		CPUs: runtime.NumCPU(), Memory: memory.Totalram * uint64(memory.Unit), Cgroup: fmt.Sprintf("v%d", n.host.Cgroup),
		Root: n.config.Root, State: n.config.State, Socket: n.config.Socket, Snapshotter: n.storage.name, Storage: n.storage.ladder,
		Runtimes: n.runtimes.versions(), Runtime: n.runtimes.usual,
		NodePid: os.Getpid(), KeeperPid: n.keeper.Pid(),
		Containers: map[spec.State]int{}, Images: len(images), Security: n.security(), Warnings: n.warnings(),
		RegistryHosts: strings.Join(n.certDirs(), ":"), Scrubbed: n.images.LastScrub(),
	}
	for _, c := range containers {
		info.Containers[c.State.Status]++
	}
	return info, nil
}

func (n *node) certDirs() []string {
	if n.config.CertsDirs != nil {
		return n.config.CertsDirs
	}
	return remote.DefaultCertDirs()
}

func (n *node) security() []string {
	var has []string
	for name, there := range map[string]bool{
		"seccomp": n.host.Seccomp, "apparmor": n.host.AppArmor, "userns": n.host.UserNS, "remapped": n.config.RemapUsers,
	} {
		if there {
			has = append(has, name)
		}
	}
	slices.Sort(has)
	return has
}

// warnings names what this machine lacks and a user may miss.
func (n *node) warnings() []string {
	var lacks []string
	for _, controller := range []string{"memory", "cpu", "cpuset", "pids", "freezer"} {
		if !n.host.Controllers[controller] && (controller != "freezer" || n.host.Cgroup == 1) {
			lacks = append(lacks, "no "+controller+" cgroup: limits on it fail")
		}
	}
	if n.storage.note != "" {
		lacks = append(lacks, "storage driver: "+n.storage.note)
	}
	if !n.host.Swap {
		lacks = append(lacks, "swap cannot be limited")
	}
	if !n.host.Seccomp {
		lacks = append(lacks, "the kernel has no seccomp: system calls are not filtered")
	}
	if damage := n.images.Damage(); len(damage) > 0 {
		lacks = append(lacks, damageWarning(damage))
	}
	if n.host.Init == "" {
		lacks = append(lacks, "no init program: --init fails; apt-get install tini")
	}
	return lacks
}

func osName() string {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	for line := range strings.Lines(string(release)) {
		if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(name), `"`)
		}
	}
	return runtime.GOOS
}
