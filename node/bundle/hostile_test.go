package bundle_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/spec"
)

// What an image says of its users is what it says: no id of it becomes that of
// root, or of whoever runs the container, because it does not fit.
func TestIDsThatDoNotFit(t *testing.T) {
	const (
		huge  = "4294967296" // root, where 32 bits are kept of it
		least = "-1"         // to the kernel: stay who you are
	)
	for what, of := range map[string]struct{ passwd, group, user string }{
		"uid by name":          {"evil:x:" + huge + ":1000::/:/bin/sh\n", "", "evil"},
		"uid by number":        {"evil:x:" + huge + ":1000::/:/bin/sh\n", "", huge},
		"negative uid":         {"evil:x:" + least + ":1000::/:/bin/sh\n", "", least},
		"last uid":             {"evil:x:4294967295:1000::/:/bin/sh\n", "", "4294967295"},
		"uid no number holds":  {"evil:x:99999999999999999999:1000::/:/bin/sh\n", "", "evil"},
		"gid of a user":        {"evil:x:1000:" + huge + "::/:/bin/sh\n", "", "1000"},
		"group":                {"", "evil:x:" + huge + ":\n", "1000:evil"},
		"group by number":      {"", "evil:x:" + huge + ":\n", "1000:" + huge},
		"supplementary groups": {"evil:x:1000:1000::/:/bin/sh\n", "wheel:x:" + huge + ":evil\n", "evil"},
	} {
		root := rootfs(t)
		for name, text := range map[string]string{"passwd": of.passwd, "group": of.group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		pod := podInput(t, spec.PodContainerConfig{}, func(in *bundle.PodInput) { in.Rootfs, in.Image.User = root, of.user })
		if s, _, err := bundle.PodSpec(t.Context(), pod); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: a container of a pod: %v, %v", what, s, err)
		}
		own := input(t, spec.ContainerConfig{User: of.user})
		own.Rootfs = root
		if s, err := bundle.Spec(own); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: a container: %v, %v", what, s, err)
		}
	}
}

// An image that is mounted as a volume is data of somebody else's.
func TestImageVolumesHaveNoRights(t *testing.T) {
	in := podInput(t, spec.PodContainerConfig{Mounts: []spec.PodMount{{Target: "/image", Image: "sha256:def"}}},
		func(in *bundle.PodInput) { in.Images = map[string]string{"sha256:def": t.TempDir()} })
	s, _, err := bundle.PodSpec(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/image" })
	for _, option := range []string{"ro", "nosuid", "nodev"} {
		if !slices.Contains(s.Mounts[at].Options, option) {
			t.Errorf("it is mounted %v, without %s", s.Mounts[at].Options, option)
		}
	}
}

// A node may want who names no seccomp profile to have one; who wants none, and
// the privileged, have none all the same.
func TestDefaultSeccomp(t *testing.T) {
	for what, tt := range map[string]struct {
		byDefault, has bool
		security       spec.PodSecurity
	}{
		"nothing said":         {false, false, spec.PodSecurity{}},
		"default":              {true, true, spec.PodSecurity{}},
		"unconfined":           {true, false, spec.PodSecurity{Seccomp: &spec.SecurityProfile{Type: spec.ProfileUnconfined}}},
		"privileged":           {true, false, spec.PodSecurity{Privileged: true}},
		"privileged with ours": {true, false, spec.PodSecurity{Privileged: true, Seccomp: &spec.SecurityProfile{Type: spec.ProfileDefault}}},
	} {
		in := podInput(t, spec.PodContainerConfig{Security: tt.security}, func(in *bundle.PodInput) {
			in.DefaultSeccomp, in.Host.Seccomp, in.Pod.Config.Security.Privileged = tt.byDefault, true, true
		})
		s, _, err := bundle.PodSpec(t.Context(), in)
		if err != nil || (s.Linux.Seccomp != nil) != tt.has {
			t.Errorf("%s: %v, %v", what, s.Linux.Seccomp, err)
		}
	}
}
