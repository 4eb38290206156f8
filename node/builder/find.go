package builder

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"berth/base/errs"
)

// programs are BuildKit's.
type programs struct{ server, client string }

// programs finds what is named, else what lies beside this program, else what
// is in PATH.
func (b *Builder) programs() (programs, error) {
	server, err := lookUp(b.Server, "buildkitd", beside())
	if err != nil {
		return programs{}, err
	}
	client, err := lookUp(b.Client, "buildctl", filepath.Dir(server))
	if err != nil {
		return programs{}, err
	}
	return programs{server, client}, nil
}

func beside() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Dir(self)
}

func lookUp(named, usual, beside string) (string, error) {
	if named != "" {
		path, err := exec.LookPath(named)
		if err != nil {
			return "", errs.New(errs.NotFound, "%s, which the configuration names for building: %w", named, err)
		}
		return filepath.Abs(path)
	}
	for _, name := range []string{filepath.Join(beside, usual), usual} {
		path, err := exec.LookPath(name)
		if err == nil || errors.Is(err, exec.ErrDot) {
			return filepath.Abs(path)
		}
	}
	return "", errs.New(errs.NotFound, "there is no %s on this machine, and building takes BuildKit: make buildkit builds it beside berth; "+
		"or put buildkitd and buildctl of github.com/moby/buildkit there or into PATH, or name them under [builder] in the configuration", usual)
}
