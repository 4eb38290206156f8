package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"

	"berth/base/errs"
	"berth/spec"
)

// addConfinement fills in what the kernel's guards say: SELinux, seccomp,
// AppArmor, hidden and read-only paths. None of them holds the privileged,
// but for an AppArmor profile that was named.
func addConfinement(ctx context.Context, s *specs.Spec, in PodInput) error {
	c := in.Container.Config.Security
	var err error
	if s.Process.SelinuxLabel, s.Linux.MountLabel, err = containerLabels(in); err != nil {
		return err
	}
	if s.Process.ApparmorProfile, err = appArmorProfile(ctx, c, in.Host); err != nil {
		return err
	}
	if c.Privileged {
		return nil
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = c.MaskedPaths, c.ReadOnlyPaths
	s.Linux.Seccomp, err = podSeccomp(c.Seccomp, s, in)
	return err
}

// podSeccomp is the profile of system calls. Who names none has none, unless
// the node wants the default one for all: kubelet always names one.
func podSeccomp(asked *spec.SecurityProfile, s *specs.Spec, in PodInput) (*specs.LinuxSeccomp, error) {
	if asked == nil && in.DefaultSeccomp {
		asked = &spec.SecurityProfile{Type: spec.ProfileDefault}
	}
	switch {
	case asked == nil, asked.Type == spec.ProfileUnconfined:
		return nil, nil
	case !in.Host.Seccomp && asked.Type == spec.ProfileDefault:
		return nil, nil
	case !in.Host.Seccomp:
		return nil, errs.New(errs.Unsupported, "seccomp: this kernel has none")
	case asked.Type == spec.ProfileDefault:
		profile, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, errs.New(errs.Internal, "seccomp: default profile: %w", err)
		}
		return profile, nil
	case asked.Type != spec.ProfileLocalhost:
		return nil, errs.New(errs.Invalid, "seccomp: unknown type of profile %q", asked.Type)
	}
	file := strings.TrimPrefix(asked.Localhost, "localhost/")
	if !filepath.IsAbs(file) {
		if in.ProfileDir == "" || !filepath.IsLocal(file) {
			return nil, errs.New(errs.Invalid, "seccomp profile %q: not the path of a file", asked.Localhost)
		}
		file = filepath.Join(in.ProfileDir, file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.New(errs.Invalid, "seccomp profile: %w", err)
	}
	profile, err := seccomp.LoadProfile(string(text), s)
	if err != nil {
		return nil, errs.New(errs.Invalid, "seccomp profile %s: %w", file, err)
	}
	return profile, nil
}

// PodLabels are the SELinux labels of a pod's processes and of what they
// mount, with a level that no other pod has; "" where SELinux is off. They
// are the pod's until ReleasePodLabels.
func PodLabels(config spec.PodConfig) (process, mount string, err error) {
	if config.Security.Privileged && config.Security.SELinux == nil {
		process, mount, err = label.InitLabels([]string{"disable"})
	} else {
		process, mount, err = label.InitLabels(labelOptions(config.Security.SELinux))
	}
	if err != nil {
		return "", "", errs.New(errs.Invalid, "SELinux label: %w", err)
	}
	return process, mount, nil
}

// ReservePodLabels takes the level of a pod that an earlier life of this
// process had labelled.
func ReservePodLabels(process string) {
	if process != "" {
		_ = selinux.ReserveLabelV2(process) // taken already: by a client's own choice
	}
}

// ReleasePodLabels gives the level back.
func ReleasePodLabels(process string) {
	if process != "" {
		selinux.ReleaseLabel(process)
	}
}

// labelOptions are a label in the words of the library.
func labelOptions(l *spec.SELinuxLabel) []string {
	if l == nil {
		return nil
	}
	var options []string
	for _, part := range []struct{ key, value string }{{"user", l.User}, {"role", l.Role}, {"type", l.Type}, {"level", l.Level}} {
		if part.value != "" {
			options = append(options, part.key+":"+part.value)
		}
	}
	return options
}

// containerLabels are those of the pod, or the container's own with the pod's
// level. The privileged are not held.
func containerLabels(in PodInput) (process, mount string, err error) {
	own := in.Container.Config.Security.SELinux
	switch {
	case own == nil && in.Container.Config.Security.Privileged:
		process, mount, err = label.InitLabels([]string{"disable"})
	case own == nil:
		return in.Pod.ProcessLabel, in.Pod.MountLabel, nil
	default:
		with := *own
		if with.Level == "" && in.Pod.ProcessLabel != "" {
			if of, err := selinux.NewContext(in.Pod.ProcessLabel); err == nil {
				with.Level = of["level"]
			}
		}
		process, mount, err = label.InitLabels(labelOptions(&with))
	}
	if err != nil {
		return "", "", errs.New(errs.Invalid, "SELinux label: %w", err)
	}
	return process, mount, nil
}

// relabel gives a source of a mount the label that the pod's processes may use.
func relabel(path, mountLabel string) error {
	err := label.Relabel(path, mountLabel, false)
	if err != nil && !errors.Is(err, syscall.ENOTSUP) {
		return fmt.Errorf("label %s: %w", path, err)
	}
	return nil
}
