package shim

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"berth/base/errs"
)

// Find finds the program of a runtime: io.containerd.NAME.VERSION is
// containerd-shim-NAME-VERSION in PATH or beside the node's own, and a path is
// itself. errs.NotFound: it is not there; errs.Invalid: the name can be none.
func Find(runtime string) (string, error) {
	if filepath.IsAbs(runtime) {
		return executable(runtime, runtime)
	}
	parts := strings.Split(runtime, ".")
	last := len(parts) - 1
	if last < 1 || parts[0] == "" || parts[last-1] == "" || parts[last] == "" || strings.Contains(runtime, "/") {
		return "", errs.New(errs.Invalid, "runtime %q: neither a name such as io.containerd.runsc.v1 nor the path of a program", runtime)
	}
	program := "containerd-shim-" + parts[last-1] + "-" + parts[last]
	path, err := exec.LookPath(program)
	if err == nil {
		return filepath.Abs(path)
	}
	if self, selfErr := os.Executable(); selfErr == nil && errors.Is(err, exec.ErrNotFound) {
		if path, besideErr := executable(runtime, filepath.Join(filepath.Dir(self), program)); besideErr == nil {
			return path, nil
		}
	}
	return "", errs.New(errs.NotFound, "runtime %q: there is no program %s in PATH", runtime, program)
}

func executable(runtime, path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", errs.New(errs.NotFound, "runtime %q: %w", runtime, err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return "", errs.New(errs.Invalid, "runtime %q: not a program", runtime)
	}
	return path, nil
}

// validName says whether a client's name, or an id of ours, can be the name
// of a file.
func validName(name string) bool {
	return name != "" && len(name) <= 200 && name[0] != '.' && !strings.ContainsAny(name, "/\x00")
}
