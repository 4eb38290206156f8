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
	parser, base := parserForTest(t)
	for what, there := range map[string]func(string) bool{
		"alone": none,
		"with includes": func(path string) bool {
			_, err := os.Stat(filepath.Join(base, strings.TrimPrefix(path, "/etc/apparmor.d")))
			return err == nil
		},
	} {
		check := exec.CommandContext(t.Context(), parser, "--skip-kernel-load", "--skip-cache", "--stdout", "--base", base)
		check.Stdin = strings.NewReader(defaultAppArmorProfile("unconfined", there))
		if out, err := check.Output(); err != nil || len(out) == 0 {
			t.Errorf("%s: apparmor_parser: %v, %d bytes", what, err, len(out))
		}
	}
}

// parserForTest finds apparmor_parser and what profiles include: on this
// machine, or where test/vm/setup.sh puts it.
func parserForTest(t *testing.T) (parser, base string) {
	t.Helper()
	if parser, err := exec.LookPath("apparmor_parser"); err == nil {
		return parser, "/etc/apparmor.d"
	}
	dir, err := filepath.Abs("../../.cache/vm/apparmor")
	if err != nil {
		t.Fatal(err)
	}
	parser = filepath.Join(dir, "sbin/apparmor_parser")
	if _, err := os.Stat(parser); err != nil {
		t.Skip("apparmor_parser is not there: the profile's words are not checked")
	}
	return parser, filepath.Join(dir, "etc/apparmor.d")
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
