package bundle

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestAppArmorProfile(t *testing.T) {
	all := func(string) bool { return true }
	none := func(string) bool { return false }
	for name, text := range map[string]string{
		"apparmor":      defaultAppArmorProfile("unconfined\n", all),
		"apparmor-bare": defaultAppArmorProfile("/usr/bin/berth (enforce)\n\x00", none),
	} {
		want, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil || text != string(want) {
			t.Errorf("%v: differs from testdata/%s:\n%s", err, name, text)
		}
	}
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("apparmor_parser is not installed: the profile's words are not checked")
	}
	for _, there := range []func(string) bool{none, exists} {
		check := exec.CommandContext(t.Context(), parser, "--skip-kernel-load", "--skip-cache", "--stdout")
		check.Stdin = strings.NewReader(defaultAppArmorProfile("unconfined", there))
		if out, err := check.Output(); err != nil || len(out) == 0 {
			t.Errorf("apparmor_parser: %v, %d bytes", err, len(out))
		}
	}
}

func TestLists(t *testing.T) {
	const profiles = "berth-default (enforce)\n/usr/bin/man (complain)\nodd (name) (enforce)\nberth-default//child (unconfined)\n"
	for name, want := range map[string]bool{
		"berth-default": true, "/usr/bin/man": true, "odd (name)": true, "odd": false, "berth": false, "": false, "child": false,
	} {
		if got := lists([]byte(profiles), name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}
