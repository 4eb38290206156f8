package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/machine"
)

// builder is a buildkitd whose worker is the engine.
type builder struct {
	*engine
	buildkitd *machine.Daemon
	context   string // folder of what is built
}

func newBuilder(t *testing.T) *builder {
	t.Helper()
	machine.Need(t, filepath.Join(clients, "buildkitd"), filepath.Join(clients, "buildctl"))
	b := &builder{engine: newEngine(t)}
	b.context = filepath.Join(b.Dir, "context")
	machine.Must(t, os.Mkdir(b.context, 0o700))
	config, socket := filepath.Join(b.Dir, "buildkitd.toml"), filepath.Join(b.Dir, "b.sock")
	machine.Must(t, os.WriteFile(config, fmt.Appendf(nil, "[registry.%q]\n  http = true\n", b.registry.Host()), 0o600))
	b.buildkitd = &machine.Daemon{
		Socket: socket, Log: filepath.Join(b.Dir, "buildkitd.log"), Env: b.environment(),
		Argv: []string{
			filepath.Join(clients, "buildkitd"), "--config", config, "--addr", "unix://" + socket, "--root", filepath.Join(b.Dir, "b"),
			"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr", b.Socket, "--containerd-worker-namespace", b.namespace(),
			"--containerd-worker-net", "host", "--containerd-cni-binary-dir", "/usr/lib/cni",
		},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("buildkitd says:\n%s", b.buildkitd.Says())
		}
		b.buildkitd.End(t)
	})
	b.buildkitd.Start(t)
	return b
}

// write puts a file into the context.
func (b *builder) write(t *testing.T, name, text string) {
	t.Helper()
	machine.Must(t, os.WriteFile(filepath.Join(b.context, name), []byte(text), 0o600))
}

// build builds the context and returns what BuildKit tells of its progress.
func (b *builder) build(t *testing.T, args ...string) string {
	t.Helper()
	cmd := b.command("buildctl", append([]string{
		"--addr", "unix://" + b.buildkitd.Socket, "build", "--progress", "plain",
		"--frontend", "dockerfile.v0", "--local", "context=" + b.context, "--local", "dockerfile=" + b.context,
	}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("buildctl build %q: %v\n%s", args, err, out)
	}
	return string(out)
}

const stages = `FROM %[1]s AS first
ARG WHO=nobody
RUN echo built by $WHO > /who && rm /data/seed
RUN --mount=type=secret,id=key,required=true grep -q secret /run/secrets/key
RUN --mount=type=cache,target=/cache echo more >> /cache/file && test ! -e /data/seed

FROM %[1]s AS second
WORKDIR /work
COPY copied ./
RUN mkdir made && echo %[2]s > made/file && ln made/file made/link && chown -R 33:33 made
COPY --from=first /who /who
RUN rm /etc/issue
CMD ["sh", "-c", "cat /who /work/copied /work/made/link; stat -c %%u:%%h /work/made/link; test ! -e /etc/issue"]
`

func TestBuildKit(t *testing.T) {
	b := newBuilder(t)
	host := b.registry.Host()
	image := host + "/" + busyboxName
	b.write(t, "Dockerfile", fmt.Sprintf(stages, image, "one"))
	b.write(t, "copied", "copied\n")
	b.write(t, "key", "secret\n")
	secret, by := "id=key,src="+filepath.Join(b.context, "key"), "build-arg:WHO=me"
	const shown = "built by me\ncopied\none\n33:2\n"

	// Into the engine's images, and to a registry, with the cache.
	b.build(t, "--secret", secret, "--opt", by, "--output", "type=image,name="+host+"/built:1,push=true,unpack=true",
		"--export-cache", "type=registry,mode=max,ref="+host+"/cache:1")
	if got := b.must(t, "ctr", "run", "--rm", host+"/built:1", "one", "sh", "-c", "cat /who /work/copied /work/made/link; stat -c %u:%h /work/made/link; test ! -e /etc/issue"); got != shown {
		t.Errorf("a container of what was built says\n%s", got)
	}
	if got := b.must(t, "nerdctl", "run", "--rm", "--net", "none", "--pull", "always", "--insecure-registry", host+"/built:1"); got != shown {
		t.Errorf("a container of what was pushed says\n%s", got)
	}

	// What was built is not built again; with the cache of the registry neither
	// by one who forgot it all.
	if said := b.build(t, "--secret", secret, "--opt", by); strings.Count(said, "CACHED") < 6 {
		t.Errorf("a second build does it again:\n%s", said)
	}
	b.must(t, "buildctl", "--addr", "unix://"+b.buildkitd.Socket, "prune", "--all")
	if said := b.build(t, "--secret", secret, "--opt", by, "--import-cache", "type=registry,ref="+host+"/cache:1", "--output", "type=image,name=docker.io/library/imported:1,unpack=true"); strings.Count(said, "CACHED") < 4 {
		t.Errorf("a build with the registry's cache does it again:\n%s", said)
	}
	if got := b.must(t, "ctr", "run", "--rm", "docker.io/library/imported:1", "two", "cat", "/who"); got != "built by me\n" {
		t.Errorf("a container of the cache says %q", got)
	}

	// To files: archives and the tree itself.
	archive, tree := filepath.Join(b.Dir, "built.tar"), filepath.Join(b.Dir, "tree")
	b.build(t, "--secret", secret, "--opt", by, "--output", "type=oci,name=docker.io/library/packed:1,dest="+archive)
	b.must(t, "ctr", "images", "import", archive)
	if got := b.must(t, "ctr", "run", "--rm", "docker.io/library/packed:1", "three", "cat", "/work/copied"); got != "copied\n" {
		t.Errorf("a container of the archive says %q", got)
	}
	b.build(t, "--secret", secret, "--opt", by, "--output", "type=docker,name=docker.io/library/docked:1,dest="+archive)
	b.must(t, "nerdctl", "load", "-i", archive)
	b.build(t, "--secret", secret, "--opt", by, "--output", "type=local,dest="+tree)
	if text, err := os.ReadFile(filepath.Join(tree, "who")); err != nil || string(text) != "built by me\n" {
		t.Errorf("the tree has %q, %v", text, err)
	}

	// A build that fails says why, and what it was.
	b.write(t, "Dockerfile", "FROM "+image+"\nRUN echo half; exit 3\n")
	if out, err := b.try("buildctl", "--addr", "unix://"+b.buildkitd.Socket, "build", "--frontend", "dockerfile.v0", "--local", "context="+b.context, "--local", "dockerfile="+b.context); err == nil || !strings.Contains(err.Error(), "exit code: 3") {
		t.Errorf("a RUN that fails: %v\n%s", err, out)
	}

	// nerdctl builds by the same.
	b.write(t, "Dockerfile", fmt.Sprintf(stages, image, "two"))
	b.must(t, "nerdctl", "--insecure-registry", "build", "--buildkit-host", "unix://"+b.buildkitd.Socket, "-t", "named:1", "--secret", secret, "--build-arg", "WHO=you", b.context)
	if got := b.must(t, "nerdctl", "run", "--rm", "--net", "none", "named:1"); got != "built by you\ncopied\ntwo\n33:2\n" {
		t.Errorf("a container of what nerdctl built says\n%s", got)
	}
	b.must(t, "buildctl", "--addr", "unix://"+b.buildkitd.Socket, "prune", "--all")
}
