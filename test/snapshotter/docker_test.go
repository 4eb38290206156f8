package snapshotter

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/machine"
)

// docker is Docker's engine on an engine of ours, with its command line.
type docker struct {
	*engine
	programs string
	dockerd  *machine.Daemon
}

func newDocker(t *testing.T, driver string) *docker {
	t.Helper()
	machine.Need(t)
	programs, err := filepath.Abs("../../.cache/docker")
	machine.Must(t, err)
	for _, program := range []string{"docker", "dockerd", "docker-buildx", "runc"} {
		machine.Need(t, filepath.Join(programs, program))
	}
	d := &docker{engine: newEngine(t, driver), programs: programs}
	plugins := filepath.Join(d.dir, "config", "cli-plugins")
	machine.Must(t, os.MkdirAll(plugins, 0o700))
	machine.Must(t, os.Symlink(filepath.Join(programs, "docker-buildx"), filepath.Join(plugins, "docker-buildx")))
	socket := filepath.Join(d.dir, "d.sock")
	d.dockerd = &machine.Daemon{
		Socket: socket, Log: filepath.Join(d.dir, "dockerd.log"), Env: []string{"PATH=" + peers + ":/usr/sbin:/sbin:" + os.Getenv("PATH")},
		Argv: []string{
			filepath.Join(programs, "dockerd"), "--containerd", d.containerd.Socket, "--containerd-namespace", d.namespace("docker"), "--cgroup-parent", "/" + d.namespace("docker"), "--storage-driver", "berth", "--host", "unix://" + socket,
			"--data-root", filepath.Join(d.dir, "d"), "--exec-root", filepath.Join(d.dir, "de"), "--pidfile", filepath.Join(d.dir, "d.pid"),
			"--add-runtime", "new=" + filepath.Join(programs, "runc"), "--default-runtime", "new", "--seccomp-profile", "unconfined",
			"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--userland-proxy=false",
		},
	}
	d.dockerd.Start(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("dockerd says:\n%s", d.dockerd.Says())
		}
		d.dockerd.End(t)
	})
	return d
}

func (d *docker) docker(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(d.programs, "docker"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.dockerd.Socket, "DOCKER_CONFIG="+filepath.Join(d.dir, "config"))
	var says strings.Builder
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker %s: %v\n%s%s", strings.Join(args, " "), err, out, says.String())
	}
	return string(out)
}

// see wants a container of the image to say something.
func (d *docker) see(t *testing.T, image, command, want string) {
	t.Helper()
	if got := d.docker(t, "run", "--rm", "--network", "none", image, "sh", "-c", command); got != want {
		t.Errorf("a container of %s sees\n%s\nwant\n%s", image, got, want)
	}
}

// TestDocker is Docker with its image store in containerd, and that on berth
// snapshotter: load, run, diff, commit, build, prune, and a kill in the middle.
func TestDocker(t *testing.T) {
	for _, rung := range rungs {
		t.Run(rung, func(t *testing.T) { tryDocker(t, newDocker(t, rung)) })
	}
}

func tryDocker(t *testing.T, d *docker) {
	if got := d.docker(t, "info", "--format", "{{.Driver}}"); got != "berth\n" {
		t.Fatalf("Docker's storage driver is %q", got)
	}
	d.docker(t, "load", "--input", ociArchive(t, layered(t)))
	d.see(t, "layered:1", look, shown)

	d.docker(t, "run", "--detach", "--network", "none", "--name", "web", "layered:1", "sh", "-c", "echo written > /etc/kept; rm /etc/replaced; sleep 1000")
	const changed = "C /etc\nC /etc/kept\nD /etc/replaced\n"
	machine.Await(t, "the container has changed its tree", func() bool { return d.docker(t, "diff", "web") == changed })
	d.snapshotter.Kill()
	d.snapshotter.Start(t)
	if got := d.docker(t, "exec", "web", "cat", "/etc/kept", "/hidden/c"); got != "written\nc\n" {
		t.Errorf("in the running container: %q", got)
	}
	machine.Await(t, "containerd calls the new snapshotter", func() bool {
		_, err := d.try("docker", "snapshots", "--snapshotter", "berth", "ls")
		return err == nil
	})
	d.docker(t, "commit", "web", "committed:1")
	d.see(t, "committed:1", "cat /etc/kept; [ -e /etc/replaced ] || echo gone", "written\ngone\n")
	d.docker(t, "rm", "--force", "web")

	dir := t.TempDir()
	machine.Must(t, os.WriteFile(filepath.Join(dir, "copied"), []byte("copied\n"), 0o600))
	machine.Must(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(
		"FROM layered:1 AS first\nRUN echo built > /built\nRUN rm -r /hidden\nFROM layered:1\nCOPY --from=first /built /built\nCOPY copied /copied\nRUN rm /etc/kept && touch /hidden/d\n"), 0o600))
	d.docker(t, "build", "--network", "none", "--tag", "built:1", dir) // by BuildKit, in dockerd
	d.see(t, "built:1", "cat /built /copied; ls /hidden; [ -e /etc/kept ] || echo gone", "built\ncopied\nc\nd\ngone\n")

	d.docker(t, "builder", "prune", "--all", "--force")
	d.docker(t, "image", "prune", "--all", "--force")
	machine.Await(t, "the last image took the last snapshot along", func() bool {
		return len(d.kept(t, "committed"))+len(d.kept(t, "active"))+len(d.kept(t, "view")) == 0
	})
	machine.Await(t, "the disk is free", func() bool { return d.bytes(t) < 100<<10 })
}
