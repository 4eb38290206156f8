package vm_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/test/vm"
)

// The suite of node/snapshot on other kernels: each rung of the ladder where
// the kernel carries it.
func TestStorage(t *testing.T) {
	for kernel, suites := range map[vm.Kernel][]suite{
		vm.Linux612: {{"node/snapshot/lcfs", "^TestSuite$/^File$"}, {"node/snapshot/lcfs", "^TestSettle$"}, {"node/snapshot/lcfs", "^(TestSeal|TestScrubFinds|TestPlantedObject|TestNoGhosts|TestIngestOnFolder)$"}, {"node/snapshot/overlay", "^TestSuite$"}, {"node/snapshot/copy", "^TestSuite$/^(ext4|tmpfs)$"}},
		vm.Linux61:  {{"node/snapshot/overlay", "^(TestSuite|TestRandomHistory|TestVariants.*)$"}, {"node/snapshot/copy", "^TestSuite$/^ext4$"}, {"node/snapshot/copy", "^TestRandomHistory$/^ext4$"}},
	} {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			files := map[string]string{}
			var script strings.Builder
			script.WriteString("export TMPDIR=/var/lib HOME=/root\n")
			for _, s := range suites {
				name := filepath.Base(s.room) + ".test"
				if files["suite/"+name] == "" {
					files["suite/"+name] = s.build(t)
				}
				fmt.Fprintf(&script, "(cd /suite && ./%s -test.v -test.timeout 5m -test.run '%s') && echo '%s'\n", name, s.run, s.passed())
			}
			g := vm.Boot(t, kernel, vm.NewDisk(t, 2048, script.String(), files), "")
			g.WaitEnd(t, 10*time.Minute)
			for _, s := range suites {
				if !strings.Contains(g.Output(), s.passed()+"\n") {
					t.Errorf("%s of %s failed on Linux %s:\n%s", s.run, s.room, kernel, g.Output())
				}
			}
			for line := range strings.Lines(g.Output()) {
				if strings.Contains(line, "--- SKIP") {
					t.Logf("skipped there: %s", strings.TrimSpace(line))
				}
			}
		})
	}
}

// suite is tests of one package.
type suite struct{ room, run string }

func (s suite) passed() string { return "suite: " + s.room + " " + s.run + " passed" }

// build compiles them to one program that needs nothing of the guest.
func (s suite) build(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(s.room)+".test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags", "-s -w", "-o", out, "berth/"+s.room) //nolint:gosec // a test's own command
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests of %s: %v\n%s", s.room, err, said)
	}
	return out
}
