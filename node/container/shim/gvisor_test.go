package shim_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"berth/node/container"
	"berth/spec"
)

// A foreign shim, of version 2 of the protocol, which answers with a bare
// address: gVisor's.
func TestGVisor(t *testing.T) {
	b := newBench(t)
	program, err := filepath.Abs("../../../.cache/peer/containerd-shim-runsc-v1")
	if err != nil {
		t.Fatal(err)
	}
	if found, err := exec.LookPath("containerd-shim-runsc-v1"); err == nil {
		program = found
	} else if _, err := os.Stat(program); err != nil {
		t.Skip("gVisor's containerd-shim-runsc-v1 is neither in PATH nor in .cache/peer")
	}
	if _, err := exec.LookPath("runsc"); err != nil {
		t.Skip("runsc is not installed")
	}
	r := b.runtime(b.install("runsc", program))
	// Its containers need no cgroups and networks here.
	config := filepath.Join(b.dir, "runsc.toml")
	b.ok(os.WriteFile(config, []byte("root = \""+filepath.Join(b.dir, "runsc")+"\"\n[runsc_config]\nplatform = \"ptrace\"\nnetwork = \"none\"\nignore-cgroups = \"true\"\n"), 0o644), "write")
	value, err := proto.Marshal(&runtimeoptions.Options{TypeUrl: "io.containerd.runsc.v1.options", ConfigPath: config})
	b.ok(err, "options")
	launch := func(id string, args ...string) container.Launch {
		l := b.launch(r, id, command(args...), func(s *specs.Spec) {
			s.Linux.CgroupsPath = ""
			// What has none it takes for a container in a sandbox that is there.
			s.Annotations = map[string]string{"io.kubernetes.cri.container-type": "sandbox"}
		})
		l.Options = &spec.Opaque{Type: "runtimeoptions.v1.Options", Value: value}
		return l
	}

	probe := launch("probe", "true")
	if _, err := r.Run(t.Context(), probe); err != nil && strings.Contains(err.Error(), "OOM Score") {
		t.Skipf("gVisor's shim wants to be spared when memory runs out, and this machine does not let it: %v", err)
	}
	t.Run("run", func(t *testing.T) {
		p := b.run(r, launch("run", "sh", "-c", "echo hello; sleep 0.5; exit 7"))
		if x := b.exit(p.ID); x.Code != 7 || !x.Known {
			t.Errorf("ended as %+v", x)
		}
		if log, _ := os.ReadFile(filepath.Join(b.dir, "run.log")); string(log[min(len(log), 31):]) != "stdout F hello\n" {
			t.Errorf("log %q", log)
		}
		b.ok(r.Delete(t.Context(), p.ID), "delete")
	})
	t.Run("exec and kill", func(t *testing.T) {
		p := b.run(r, launch("kill", "sleep", "1000"))
		e, err := r.Exec(t.Context(), container.ExecLaunch{ID: "e", Container: p.ID, Stdin: true, Process: process(false, "/bin/sh", "-c", "cat; exit 9")})
		b.ok(err, "exec")
		_, err = io.WriteString(e.Stdin, "over\n")
		b.ok(err, "write")
		b.ok(e.CloseStdin(t.Context()), "close stdin")
		if out, err := io.ReadAll(e.Stdout); err != nil || string(out) != "over\n" {
			t.Errorf("output %q, %v", out, err)
		}
		if x := b.exit("e"); x.Code != 9 {
			t.Errorf("ended as %+v", x)
		}
		if pids, err := r.Pids(t.Context(), p.ID); err != nil || len(pids) == 0 {
			t.Errorf("pids %v, %v", pids, err)
		}
		b.ok(r.Signal(t.Context(), p.ID, syscall.SIGKILL, false), "kill")
		if x := b.exit(p.ID); x.Code != 137 {
			t.Errorf("ended as %+v", x)
		}
		b.ok(r.Delete(t.Context(), p.ID), "delete")
	})
	b.ok(r.Delete(t.Context(), "probe"), "delete")
	b.noShims()
}
