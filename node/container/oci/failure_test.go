package oci

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/base/errs"
	"berth/node/container"
)

func TestFailure(t *testing.T) {
	for _, tt := range []struct {
		command, said, want string
		code                int
		kind                errs.Kind
	}{
		{"run", `{"level":"warning","msg":"cgroup is old"}
{"level":"error","msg":"runc run failed: exec: \"x\": executable file not found in $PATH"}
`, `runtime r: run: runc run failed: exec: "x": executable file not found in $PATH`, 127, errs.NotFound},
		{"exec", "exec failed: Permission denied\n", "runtime r: exec: exec failed: Permission denied", 126, errs.Invalid},
		{"run", "open executable: Operation not permitted", "runtime r: run: the command is a folder, or not to be executed", 126, errs.Invalid},
		{"run", "no space left on device", "runtime r: run: no space left on device", 128, errs.Exhausted},
		{"run", "mount_setattr `/x`: Invalid argument", "runtime r: run: mount_setattr `/x`: Invalid argument (maybe its file system cannot map owners on this kernel)", 128, errs.Unsupported},
		{"run", "failed to set MOUNT_ATTR_IDMAP on /x: invalid argument", "runtime r: run: failed to set MOUNT_ATTR_IDMAP on /x: invalid argument", 128, errs.Unsupported},
		{"run", "", "runtime r: run: failed without a word", 128, errs.Internal},
		{"start", "container does not exist", "runtime r: start: container does not exist", 0, errs.NotFound},
		{"update", "cannot update a container that has stopped", "runtime r: update: cannot update a container that has stopped", 0, errs.NotFound},
		{"exec", "cannot exec in a paused container", "runtime r: exec: cannot exec in a paused container", 0, errs.Conflict},
		{"pause", "odd", "runtime r: pause: odd", 0, errs.Internal},
	} {
		err := failure("r", tt.command, tt.said)
		code := 0
		if start, ok := errors.AsType[*container.StartError](err); ok {
			code = start.Code
		}
		if err.Error() != tt.want || code != tt.code || errs.KindOf(err) != tt.kind {
			t.Errorf("%s %q: %v, code %d (%s)", tt.command, tt.said, err, code, errs.KindOf(err))
		}
	}
}

func FuzzFailure(f *testing.F) {
	f.Add("run", `{"level":"error","msg":"x"}`)
	f.Fuzz(func(t *testing.T, command, said string) {
		if failure("r", command, said).Error() == "" {
			t.Error("no word")
		}
	})
}

// What json takes for a config.json and is none must not end the node.
func TestConfigIsAnObject(t *testing.T) {
	for _, text := range []string{"null", "[]", "7", ""} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readConfig(dir); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", text, err)
		}
	}
}
