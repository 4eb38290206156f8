package vm_test

import (
	"strconv"
	"strings"
	"testing"

	"berth/spec"
	"berth/test/vm"
)

// On Linux 6.1 the node does without what newer kernels have: lower layers
// one by one (6.5) and the exit code of somebody else's child (6.15).
func TestLinux61(t *testing.T) {
	t.Parallel()
	tools := podTools(t)
	tools["opt/runc"] = tools["sbin/runc"] // Debian's is the usual one
	delete(tools, "sbin/runc")
	tools["config.toml"] = script(t, "[runtimes.newer]\npath = \"/opt/runc\"")
	g := vm.Boot(t, vm.Linux61, vm.NodeDiskWith(t, 768, tools), "")
	g.StartNode(t, "--config", "/config.toml")
	g.Run(t, pushApp+"berth network create town")
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) { smoke(t, g, runtime) })
	}
	t.Run("remapped", func(t *testing.T) { remapped(t, g) })
	for _, runtime := range []string{"crun", "newer"} {
		t.Run("pods with user namespaces by "+runtime, func(t *testing.T) { userPods(t, g, runtime, false) })
	}
	t.Run("keeper", func(t *testing.T) { lostKeeper(t, g) })
	g.Off(t)
}

// remapped expects owners to be shifted where overlayfs takes no layers of
// mounts that are attached nowhere, and nothing left of how that is done.
func remapped(t *testing.T, g *vm.Guest) {
	t.Helper()
	out, code := g.Try(t, `berth run --name remapped --network none --userns auto busybox sh -c 'cat /proc/self/uid_map; touch /new /bin/new && stat -c "%u %n" /bin/busybox /new /bin/new'`)
	if want := "0 1879048192 65536 0 /bin/busybox 0 /new 0 /bin/new"; code != 0 || strings.Join(strings.Fields(out), " ") != want {
		t.Errorf("a remapped container: %d %s", code, out)
	}
	g.Run(t, "berth rm remapped; ! grep -e overlay -e idmapped /proc/self/mountinfo")
}

func smoke(t *testing.T, g *vm.Guest, runtime string) {
	if out, code := g.Try(t, "berth run --rm --runtime "+runtime+" busybox sh -c 'echo out; exit 7'"); code != 7 || out != "out" {
		t.Errorf("run: %d %q", code, out)
	}
	g.Run(t, "berth run -d --name web --runtime "+runtime+" --network town -p 8080:80 -v data:/var/www/data -m 64m --read-only --tmpfs /tmp busybox httpd -f -h /var/www")
	out := g.Run(t, `
set -e
berth exec web sh -c 'echo from exec > /var/www/data/page'
timeout 5 wget -qO- http://127.0.0.1:8080/data/page
timeout 5 wget -qO- "http://[::1]:8080/data/page"
berth run --rm --runtime `+runtime+` --network town busybox timeout 5 wget -qO- http://web/data/page
berth exec web sh -c 'touch /x' 2>&1 || echo refused
berth stats --no-stream --format '{{.MemUsage}}' web
berth top web`)
	if strings.Count(out, "from exec\n") != 3 || !strings.Contains(out, "refused") || !strings.Contains(out, "/ 64MiB") || !strings.Contains(out, "httpd -f") {
		t.Errorf("exec, ports, names, stats: %s", out)
	}
	if events := g.Run(t, "berth pause web && berth unpause web && berth stop -t 1 web && berth start web && timeout 5 wget -qO- http://127.0.0.1:8080/data/page && berth diff web"); !strings.Contains(events, "from exec") {
		t.Errorf("after stop and start: %s", events)
	}
	// Layers made here, on top of each other, are mounted and told apart.
	out = g.Run(t, `
set -e
berth run --name one --runtime `+runtime+` --network none busybox sh -c 'echo one > /one; echo gone > /gone'
berth commit one layered:1
berth run --name two --runtime `+runtime+` --network none layered:1 sh -c 'rm /gone; echo two > /two'
berth commit two layered:2
berth run --rm --runtime `+runtime+` --network none layered:2 sh -c 'cat /one /two; ls /gone 2>/dev/null || echo away'
berth save layered:2 | tar -t | grep -c . >/dev/null
berth rm one two; berth rmi layered:1 layered:2; berth rm -f web; berth volume rm data`)
	if !strings.Contains(out, "one\ntwo\naway\n") {
		t.Errorf("layers: %s", out)
	}
}

// lostKeeper kills the keeper: containers run on, what they write is kept,
// and how they end nobody can know on this kernel.
func lostKeeper(t *testing.T, g *vm.Guest) {
	g.Run(t, `
set -e
berth run -d --name ends --network none busybox sh -c 'n=0; until [ -e /go ]; do echo line $n; n=$((n+1)); sleep 0.1; done; echo last; exit 3'
old=$(cat /run/berth/keeper.pid)
kill -9 $old
n=0; until [ -e /run/berth/keeper.pid ] && [ "$(cat /run/berth/keeper.pid)" != $old ] && kill -0 $(cat /run/berth/keeper.pid); do n=$((n+1)); [ $n -lt 50 ]; sleep 0.2; done
sleep 1
[ "$(berth inspect -f '{{.State.Status}}' ends)" = running ]
berth exec ends touch /go`)
	g.Run(t, "berth wait ends || true") // says so by its exit code
	switch s := inspect(t, g, "ends").State; {
	case s.Status != spec.Stopped:
		t.Errorf("it has not ended: %+v", s)
	case s.ExitUnknown && s.ExitCode == 255: // init was faster than the keeper
	case s.ExitCode != 3 || s.ExitUnknown: // as its zombie told
		t.Errorf("an exit code was made up: %+v", s)
	}
	logs := g.Run(t, "berth logs ends")
	for i, line := range strings.Split(logs, "\n") {
		if want := "line " + strconv.Itoa(i); line != want && line != "last" {
			t.Errorf("the log has %q instead of %q", line, want)
			break
		}
	}
	if !strings.HasSuffix(logs, "\nlast") {
		t.Errorf("the last line is lost:\n%s", logs)
	}
	// Without node and keeper nobody sees the end.
	g.Run(t, `
set -e
berth rm ends
berth run -d --name unseen --network none busybox sh -c 'until [ -e /go ]; do sleep 0.1; done; exit 4'
pid=$(berth inspect -f '{{.State.Pid}}' unseen)
kill -9 $(cat /run/berth/node.pid) $(cat /run/berth/keeper.pid)
touch /proc/$pid/root/go
while kill -0 $pid 2>/dev/null; do sleep 0.1; done`)
	g.StartNode(t)
	if s := inspect(t, g, "unseen").State; s.Status != spec.Stopped || !s.ExitUnknown || s.ExitCode != 255 {
		t.Errorf("an exit code was made up: %+v", s)
	}
	// The next container's end is known again.
	if out, code := g.Try(t, "berth run --rm --network none busybox sh -c 'exit 9'"); code != 9 {
		t.Errorf("after that: %d %s", code, out)
	}
	g.Run(t, "berth rm unseen")
}
