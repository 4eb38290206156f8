package bundle

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// DefaultAppArmor is the name of the profile that containers have unless
// another is named.
const DefaultAppArmor = "berth-default"

// Where the kernel says what it has.
const (
	appArmorProfiles = "/sys/kernel/security/apparmor/profiles"
	appArmorCurrent  = "/proc/self/attr/current"
	appArmorTimeout  = time.Minute
)

// errNoAppArmor: the kernel has AppArmor, but this machine not what it takes to
// give it a profile.
var errNoAppArmor = errors.New("apparmor_parser is not installed, or securityfs not mounted")

// appArmorProfile is the profile of a container. The default one is loaded
// where it is not; one of the machine's must be loaded already. The
// privileged have none unless they name one, nor has who asks for nothing
// where nothing can be loaded.
func appArmorProfile(ctx context.Context, s spec.PodSecurity, h Host) (string, error) {
	asked := s.AppArmor
	if asked == nil {
		asked = &spec.SecurityProfile{Type: spec.ProfileDefault}
	}
	switch asked.Type {
	case spec.ProfileUnconfined:
		return "", nil
	case spec.ProfileDefault:
		if s.Privileged || !h.AppArmor {
			return "", nil
		}
		err := LoadAppArmor(ctx)
		if s.AppArmor == nil && errors.Is(err, errNoAppArmor) {
			return "", nil
		}
		return DefaultAppArmor, err
	case spec.ProfileLocalhost:
	default:
		return "", errs.New(errs.Invalid, "AppArmor: unknown type of profile %q", asked.Type)
	}
	name := strings.TrimPrefix(asked.Localhost, "localhost/")
	switch {
	case name == "":
		return "", errs.New(errs.Invalid, "AppArmor: no profile is named")
	case !h.AppArmor:
		return "", errs.New(errs.Unsupported, "AppArmor profile %s: this machine has no AppArmor", name)
	}
	loaded, err := appArmorLoaded(name)
	if err != nil {
		return "", err
	}
	if !loaded {
		return "", errs.New(errs.Invalid, "AppArmor profile %s is not loaded on this node", name)
	}
	return name, nil
}

// appArmorLoaded is whether the kernel has a profile of that name.
func appArmorLoaded(name string) (bool, error) {
	list, err := os.ReadFile(appArmorProfiles)
	if err != nil {
		return false, fmt.Errorf("AppArmor: loaded profiles: %w", err)
	}
	return lists(list, name), nil
}

// lists finds a name in lines such as "name (enforce)".
func lists(profiles []byte, name string) bool {
	for lines := bufio.NewScanner(bytes.NewReader(profiles)); lines.Scan(); {
		line := lines.Text()
		if at := strings.LastIndex(line, " ("); at >= 0 && line[:at] == name {
			return true
		}
	}
	return false
}

// LoadAppArmor gives the kernel the default profile, unless it has it.
// errs.Unsupported: this machine lacks what that takes.
func LoadAppArmor(ctx context.Context) error {
	switch loaded, err := appArmorLoaded(DefaultAppArmor); {
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Unsupported, "AppArmor: load the default profile: %w", errNoAppArmor)
	case err != nil:
		return err
	case loaded:
		return nil
	}
	parser := findParser()
	if parser == "" {
		return errs.New(errs.Unsupported, "AppArmor: load the default profile: %w", errNoAppArmor)
	}
	ctx, cancel := context.WithTimeout(ctx, appArmorTimeout)
	defer cancel()
	current, _ := os.ReadFile(appArmorCurrent)
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(defaultAppArmorProfile(string(current), exists))
	if out, err := cmd.CombinedOutput(); err != nil {
		return errs.New(errs.Unsupported, "AppArmor: load the default profile: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// WarnAppArmor says why containers will have no AppArmor profile, though the
// kernel has AppArmor, unless they name one; "" where they will have one.
func (h Host) WarnAppArmor() string {
	if !h.AppArmor || exists(appArmorProfiles) && findParser() != "" {
		return ""
	}
	return errNoAppArmor.Error()
}

// findParser looks for the program too where a user's PATH does not lead; ""
// where there is none.
func findParser() string {
	for _, name := range []string{"apparmor_parser", "/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// defaultAppArmorProfile is the text of the default profile for a node that
// is itself confined as current says; there says which files the machine has.
//
// It lets a container do what is its own, and keeps it off mounts and off
// what /proc and /sys offer to change or spy out the host. Whoever manages
// it may send it signals: the node, and the runtimes, that newer
// distributions confine as well.
func defaultAppArmorProfile(current string, there func(path string) bool) string {
	node, _, _ := strings.Cut(strings.TrimRight(current, "\x00\n"), " ")
	if node == "" {
		node = "unconfined"
	}
	var b strings.Builder
	if there("/etc/apparmor.d/abi/3.0") {
		b.WriteString("abi <abi/3.0>,\n") // newer ones would deny what is not named below
	}
	if there("/etc/apparmor.d/tunables/global") {
		b.WriteString("include <tunables/global>\n")
	} else {
		b.WriteString("@{PROC}=/proc/\n")
	}
	fmt.Fprintf(&b, "\nprofile %s flags=(attach_disconnected,mediate_deleted) {\n", DefaultAppArmor)
	if there("/etc/apparmor.d/abstractions/base") {
		b.WriteString("  include <abstractions/base>\n")
	}
	b.WriteString(`
  network,
  capability,
  file,
  umount,

`)
	for _, peer := range unique([]string{"unconfined", "runc", "crun", node}) {
		fmt.Fprintf(&b, "  signal (receive) peer=%s,\n", peer)
	}
	fmt.Fprintf(&b, "  signal (send,receive) peer=%s,\n", DefaultAppArmor)
	fmt.Fprintf(&b, "  ptrace (trace,tracedby,read,readby) peer=%s,\n", DefaultAppArmor)
	b.WriteString(`
  deny mount,

  # Of /proc, only what belongs to processes, and shared memory's settings.
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  # Of /sys, only the container's cgroups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
`)
	return b.String()
}
