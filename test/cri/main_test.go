package cri

import (
	"os"
	"path/filepath"
	"testing"

	"berth/test/machine"
)

// program is berth; tools is where build.sh puts what it makes.
var program, tools string

func TestMain(m *testing.M) {
	os.Exit(machine.Run(m, func() (err error) {
		if program, err = machine.Berth(); err == nil {
			tools, err = filepath.Abs("../../.cache/cri")
		}
		return err
	}, "/etc/cni", "/var/lib/cni", "/run/cni", "/run/netns", "/etc/berth", "/etc/containerd", "/etc/docker", "/run/nri", "/etc/nri", "/opt/nri", "/etc/cdi", "/run/cdi"))
}

// need skips a test that lacks root, or what build.sh makes.
func need(t testing.TB, programs ...string) {
	t.Helper()
	machine.Need(t)
	for _, name := range programs {
		machine.Need(t, filepath.Join(tools, name))
	}
}
