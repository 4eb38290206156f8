package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"berth/base/clock"
)

func TestBootOf(t *testing.T) {
	kernel, err := clock.Boot()
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	boot := func() string {
		t.Helper()
		boot, err := bootOf(state)
		if err != nil {
			t.Fatal(err)
		}
		return boot
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(state, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := boot()
	if again := boot(); again != first {
		t.Errorf("the next node is in %s, the first was in %s", again, first)
	}
	if err := os.Remove(filepath.Join(state, "boot")); err != nil {
		t.Fatal(err)
	}
	if emptied := boot(); emptied == first {
		t.Error("a folder that was emptied is as it was")
	}
	write("boot", "another-kernel.X")
	write("keeper.pid", "7")
	if rebooted := boot(); rebooted == "another-kernel.X" || rebooted == kernel {
		t.Errorf("after a reboot: %s", rebooted)
	}
	if err := os.Remove(filepath.Join(state, "boot")); err != nil {
		t.Fatal(err)
	}
	if older := boot(); older != kernel {
		t.Errorf("after a node that noted nothing: %s", older)
	}
}
