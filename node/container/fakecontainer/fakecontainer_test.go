package fakecontainer_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/node/container"
	"berth/node/container/containertest"
	"berth/node/container/fakecontainer"
)

func TestSuite(t *testing.T) {
	containertest.Suite(t, func(t *testing.T, exited func(container.Exit)) containertest.Subject {
		r := fakecontainer.New()
		r.Exited = exited
		t.Cleanup(r.Wait)
		return containertest.Subject{
			Runtime: r,
			Bundle:  bundle,
			Process: func(terminal bool, args ...string) *specs.Process {
				return &specs.Process{Args: args, Terminal: terminal, Cwd: "/"}
			},
			Forget: func(id string) error { return r.Owner().Forget(t.Context(), id) },
		}
	})
}

func bundle(t *testing.T, _ string, terminal bool, args ...string) string {
	dir := t.TempDir()
	raw, err := json.Marshal(specs.Spec{Process: &specs.Process{Args: args, Terminal: terminal}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
