package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/machine"
)

// docker is Docker's engine on the engine.
type docker struct {
	*engine
	dockerd *machine.Daemon
}

func newDocker(t *testing.T) *docker {
	t.Helper()
	for _, program := range []string{"docker", "dockerd", "docker-buildx", "runc"} {
		machine.Need(t, filepath.Join(dockers, program))
	}
	d := &docker{engine: newEngine(t)}
	plugins := filepath.Join(d.Dir, "cli-plugins") // DOCKER_CONFIG
	machine.Must(t, os.MkdirAll(plugins, 0o700))
	machine.Must(t, os.Symlink(filepath.Join(dockers, "docker-buildx"), filepath.Join(plugins, "docker-buildx")))
	socket := filepath.Join(d.Dir, "d.sock")
	d.dockerd = &machine.Daemon{
		Socket: socket, Log: filepath.Join(d.Dir, "dockerd.log"), Env: d.environment(),
		Argv: []string{
			filepath.Join(dockers, "dockerd"), "--containerd", d.Socket, "--containerd-namespace", d.namespace(), "--containerd-plugins-namespace", d.namespace() + "-p",
			"--cgroup-parent", "/" + d.namespace(), "--storage-driver", "overlayfs", "--host", "unix://" + socket,
			"--data-root", filepath.Join(d.Dir, "d"), "--exec-root", filepath.Join(d.Dir, "de"), "--pidfile", filepath.Join(d.Dir, "d.pid"),
			"--add-runtime", "new=" + filepath.Join(dockers, "runc"), "--default-runtime", "new", "--insecure-registry", d.registry.Host(),
			"--userland-proxy=false", "--seccomp-profile", "unconfined",
		},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("dockerd says:\n%s", d.dockerd.Says())
		}
		d.dockerd.End(t)
	})
	d.dockerd.Start(t)
	return d
}

// docker runs a command of docker that has to succeed and returns what it
// prints, without the line's end.
func (d *docker) docker(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(d.must(t, "docker", append([]string{"--host", "unix://" + d.dockerd.Socket}, args...)...))
}

func TestDocker(t *testing.T) {
	d := newDocker(t)
	image := d.registry.Host() + "/" + busyboxName
	see := func(want string, args ...string) {
		t.Helper()
		if got := d.docker(t, args...); got != want {
			t.Errorf("docker %s gives %q, want %q", strings.Join(args, " "), got, want)
		}
	}
	d.docker(t, "pull", "-q", image)
	has(t, d.docker(t, "images"), "library/busybox")
	has(t, d.docker(t, "info"), "Storage Driver: overlayfs")
	see("busybox of the tests", "run", "--rm", image, "cat", "/etc/issue")
	if _, err := d.try("docker", "--host", "unix://"+d.dockerd.Socket, "run", "--rm", image, "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("a container that ends with 7: %v", err)
	}

	// In the background: exits come by events alone.
	d.docker(t, "run", "-d", "--name", "web", image, "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done")
	machine.Await(t, "the container says something", func() bool { return d.docker(t, "logs", "web") == "up" })
	see("seed", "exec", "web", "cat", "/data/seed")
	has(t, d.docker(t, "top", "web"), "trap")
	has(t, d.docker(t, "stats", "--no-stream"), "web")
	has(t, d.must(t, "ctr", "tasks", "ls"), "RUNNING")
	d.docker(t, "pause", "web")
	has(t, d.docker(t, "ps"), "web", "Paused")
	d.docker(t, "unpause", "web")
	d.docker(t, "update", "--memory", "64m", "--memory-swap", "64m", "web")
	d.docker(t, "exec", "web", "sh", "-c", "echo changed > /data/new; rm /data/seed")
	has(t, d.docker(t, "diff", "web"), "A /data/new")
	d.docker(t, "commit", "web", "committed:1")
	see("changed", "run", "--rm", "committed:1", "cat", "/data/new")
	d.docker(t, "stop", "web")
	see("exited 3", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web")
	d.docker(t, "start", "web")
	d.docker(t, "restart", "-t", "1", "web")
	see("changed", "exec", "web", "cat", "/data/new")
	d.docker(t, "rm", "-f", "web")
	see("0", "wait", d.docker(t, "run", "-d", image, "sleep", "0.3"))

	// Images out and in, and built.
	saved := filepath.Join(d.Dir, "saved.tar")
	d.docker(t, "save", "-o", saved, "committed:1")
	d.docker(t, "rmi", "committed:1")
	d.docker(t, "load", "-i", saved)
	see("changed", "run", "--rm", "committed:1", "cat", "/data/new")
	d.docker(t, "tag", image, d.registry.Host()+"/pushed:1")
	d.docker(t, "push", "-q", d.registry.Host()+"/pushed:1")
	machine.Must(t, os.WriteFile(filepath.Join(d.Dir, "Dockerfile"), []byte("FROM "+image+"\nRUN echo built > /built && rm /data/seed\nCOPY Dockerfile /copied\nCMD cat /built\n"), 0o600))
	machine.Must(t, os.WriteFile(filepath.Join(d.Dir, ".dockerignore"), []byte("*\n!Dockerfile\n"), 0o600))
	d.docker(t, "build", "-q", "-t", "built:1", d.Dir)
	see("built", "run", "--rm", "built:1")

	// The engine's daemon goes and comes back under its containers.
	d.docker(t, "run", "-d", "--name", "stays", "--restart", "always", image, "sleep", "1000")
	pid := d.docker(t, "inspect", "-f", "{{.State.Pid}}", "stays")
	d.kill(t, "node")
	d.Start(t)
	machine.Await(t, "docker finds its way back", func() bool {
		_, err := d.try("docker", "--host", "unix://"+d.dockerd.Socket, "exec", "stays", "true")
		return err == nil
	})
	see(pid, "inspect", "-f", "{{.State.Pid}}", "stays")
	d.docker(t, "rm", "-f", "stays")
	d.docker(t, "system", "prune", "-af")
	see("", "ps", "-aq")
}
