package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/spec"
)

// builder is a node whose buildctl is a script; it gets the lines.
func builder(t *testing.T, script string) *fakeNode {
	t.Helper()
	buildctl := filepath.Join(t.TempDir(), "buildctl")
	if err := os.WriteFile(buildctl, []byte("#!/bin/sh\n"+script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	b := spec.Builder{Socket: "/b.sock", Client: buildctl, Server: "/buildkitd", Idle: 60, Log: "/b.log"}
	return newFakeNode(t, map[string]any{
		"POST /builder/start": b, "GET /builder": b, "POST /builder/stop": "",
		"GET /builder/cache":  spec.BuildCache{Entries: []spec.BuildCacheEntry{{ID: "abc", Type: "regular", Description: "RUN x", Size: 2000}}, Size: 2000, Reclaimable: 1000},
		"POST /builder/prune": spec.BuildCache{Entries: []spec.BuildCacheEntry{{ID: "abc"}}, Size: 2000},
	})
}

func folder(t *testing.T, dockerfile string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// told is a script that writes a result where it is told to, and its arguments.
const told = `
echo "$@" >&2
while [ $# -gt 0 ]; do
	[ "$1" = --metadata-file ] && printf '{"containerimage.config.digest":"sha256:c","containerimage.digest":"sha256:t"}' > "$2"
	shift
done
`

func TestBuildRunsBuildctl(t *testing.T) {
	n, dir := builder(t, told), folder(t, "FROM x")
	id, metadata := filepath.Join(dir, "id"), filepath.Join(dir, "meta")
	code, out, said := n.run(t, "", "build", "-q", "-t", "app", "--iidfile", id, "--metadata-file", metadata, dir)
	if code != 0 || out != "sha256:c\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, said)
	}
	for _, want := range []string{
		"--addr unix:///b.sock --timeout 30 build --frontend dockerfile.v0 --metadata-file ",
		"--local context=" + dir + " --local dockerfile=" + dir, "--progress quiet", "--output type=image,name=docker.io/library/app:latest",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("buildctl got %s, want in it %s", said, want)
		}
	}
	for file, want := range map[string]string{id: "sha256:c", metadata: "containerimage.digest"} {
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	if code, out, said = n.run(t, "", "build", "-t", "app", dir); code != 0 || out != "" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, said)
	}
}

// What BuildKit says of a failure is all that is said; its code is ours.
func TestBuildFails(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	n, dir := builder(t, "echo error: failed to solve >&2; exit 3"), folder(t, "FROM x")
	if code, _, said := n.run(t, "", "build", dir); code != 3 || said != "error: failed to solve\n" {
		t.Errorf("code %d, stderr %q", code, said)
	}
	n = builder(t, "kill -9 $$")
	if code, _, said := n.run(t, "", "build", dir); code != 1 || !strings.Contains(said, "berth: build: buildctl: signal: killed") {
		t.Errorf("code %d, stderr %q", code, said)
	}
	n = builder(t, "exit 0") // which tells of no result, as -o type=cacheonly has none
	if code, out, said := n.run(t, "", "build", "-q", dir); code != 0 || out != "" || said != "" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, said)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "berth-build-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestBuilderVerbs(t *testing.T) {
	n := builder(t, "")
	for _, c := range []struct{ line, says, asks string }{
		{"builder du", "RUN x\nReclaimable: 1kB\nTotal: 2kB\n", "GET /builder/cache"},
		{"builder du -q --filter type=regular", "abc\n", "GET /builder/cache?filter=type==regular"},
		{"builder prune -af --filter until=1h --max-used-space 1kB", "abc\nReclaimed space: 2kB\n", "POST /builder/prune"},
		{"builder status", "starts with the next build, stopped when idle for 1m0s\nSocket:   /b.sock\n", "GET /builder"},
		{"builder status -f {{.socket}}", "/b.sock\n", "GET /builder"},
		{"builder stop -f", "", "POST /builder/stop?force=true"},
	} {
		code, out, said := n.run(t, "", strings.Fields(c.line)...)
		if asked := n.asked[len(n.asked)-1]; code != 0 || said != "" || !strings.Contains(out, c.says) || asked != c.asks {
			t.Errorf("berth %s: code %d, stdout %q, stderr %q, asked %q", c.line, code, out, said, asked)
		}
	}
	if want := `{"all":true,"unused":3600,"keep":1024}`; n.body != want {
		t.Errorf("prune asked for %s, want %s", n.body, want)
	}
}
