package vm_test

import (
	"strings"
	"testing"
	"time"

	"berth/test/vm"
)

// A guest boots on each kernel, has cgroup v2 and keeps its disk over a
// power cut.
func TestGuestKeepsItsDiskOverAPowerCut(t *testing.T) {
	for _, kernel := range []vm.Kernel{vm.Linux61, vm.Linux612} {
		t.Run(string(kernel), func(t *testing.T) {
			disk := vm.NewDisk(t, 256, `
uname -r
cat /sys/fs/cgroup/cgroup.controllers
if [ -e /kept ]; then echo "kept: $(cat /kept)"; exit 0; fi
echo something > /kept; sync
echo ready
sleep 1000
`, nil)
			first := vm.Boot(t, kernel, disk, "")
			first.Wait(t, "\nready", 3*time.Minute)
			if out := first.Output(); !strings.Contains(out, "memory") || !strings.Contains(out, string(kernel)+".") {
				t.Errorf("no %s kernel with cgroup v2:\n%s", kernel, out)
			}
			first.PowerCut()
			second := vm.Boot(t, kernel, disk, "")
			second.WaitEnd(t, 3*time.Minute)
			if !strings.Contains(second.Output(), "kept: something") {
				t.Errorf("lost what was synced:\n%s", second.Output())
			}
		})
	}
}
