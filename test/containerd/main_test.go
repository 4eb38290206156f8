package containerd

import (
	"os"
	"path/filepath"
	"testing"

	"berth/test/machine"
)

// program is berth; clients is where containerd's programs lie and those made
// for it; dockers where Docker's lie.
var program, clients, dockers string

func TestMain(m *testing.M) {
	os.Exit(machine.Run(m, furnish,
		"/etc/cni", "/etc/containerd", "/etc/nerdctl", "/etc/buildkit", "/etc/docker", "/var/lib/cni", "/var/lib/nerdctl",
		"/run/cni", "/run/containerd", "/run/nerdctl", "/run/docker", "/run/buildkit"))
}

func furnish() (err error) {
	if program, err = machine.Berth(); err != nil {
		return err
	}
	if clients, err = filepath.Abs("../../.cache/clients/bin"); err != nil {
		return err
	}
	if dockers, err = filepath.Abs("../../.cache/docker"); err != nil {
		return err
	}
	// A shim under a name that nobody has a runtime for.
	if shim, err := os.ReadFile(filepath.Join(clients, "containerd-shim-runc-v2")); err == nil {
		return os.WriteFile(filepath.Join(filepath.Dir(program), "containerd-shim-named-v1"), shim, 0o755) //nolint:gosec // programs are for all
	}
	return nil // each test says what it lacks
}
