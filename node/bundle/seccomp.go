package bundle

import (
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// seccompProfile is the system calls that the container may make. The
// profiles depend on the capabilities, which s must hold already.
func seccompProfile(security spec.Security, s *specs.Spec, h Host) (*specs.LinuxSeccomp, error) {
	asked := strings.TrimSpace(security.Seccomp)
	switch {
	case asked == "unconfined", asked == "" && (security.Privileged || !h.Seccomp):
		return nil, nil
	case !h.Seccomp:
		return nil, errs.New(errs.Unsupported, "seccomp: this kernel has none")
	case asked == "", asked == "default", asked == "builtin":
		profile, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, errs.New(errs.Internal, "seccomp: default profile: %w", err)
		}
		return profile, nil
	case strings.HasPrefix(asked, "{"):
		profile, err := seccomp.LoadProfile(asked, s)
		if err != nil {
			return nil, errs.New(errs.Invalid, "seccomp profile: %w", err)
		}
		return profile, nil
	}
	return nil, errs.New(errs.Invalid, "seccomp: %.40q is neither unconfined nor a profile in JSON", asked)
}
