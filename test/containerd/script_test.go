package containerd

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"berth/test/transcript"
)

// TestScript runs the transcripts, each on an engine of its own.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "script", UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			e := newEngine(t)
			for _, line := range e.environment() {
				key, value, _ := strings.Cut(line, "=")
				env.Setenv(key, value)
			}
			env.Setenv("CONTAINERD_NAMESPACE", e.namespace())
			env.Setenv("NAMESPACE", e.namespace())
			env.Setenv("ARCHIVE", archive(t, env.WorkDir, "docker.io/library/busybox:1"))
			env.Values[engineKey{}] = e
			return nil
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "berth":
				return !peer, nil
			case "criu":
				_, err := exec.LookPath("criu")
				return err == nil, nil
			}
			return false, errors.New("unknown condition " + name)
		},
		Cmds: transcript.Commands(),
	})
}

// engineKey finds a script's engine in its values.
type engineKey struct{}
