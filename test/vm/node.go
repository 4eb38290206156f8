package vm

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Image is what the first image is called in a guest of NodeDisk.
const Image = "busybox:latest"

// NodeDisk makes a disk with Berth, crun, runc and the archive of a first
// image, for guests that run Shell.
func NodeDisk(t *testing.T, megabytes int) *Disk {
	t.Helper()
	return NodeDiskWith(t, megabytes, nil)
}

// NodeDiskWith is NodeDisk with more files, as NewDisk has them.
func NodeDiskWith(t *testing.T, megabytes int, more map[string]string) *Disk {
	t.Helper()
	repo, err := filepath.Abs("../..")
	must(t, err)
	berth := filepath.Join(repo, "bin/berth")
	if _, err := os.Stat(berth); err != nil {
		Missing(t, "bin/berth")
	}
	archive := filepath.Join(t.TempDir(), "first.tar")
	run(t, "sh", "-c", filepath.Join(repo, "test/first-image.sh")+" "+Image+" > "+archive)
	files := map[string]string{"bin/berth": berth, "first.tar": archive}
	for _, runtime := range []string{"crun", "runc"} {
		path, err := exec.LookPath(runtime)
		if err != nil {
			Missing(t, runtime)
		}
		files["usr/bin/"+runtime] = path
	}
	maps.Copy(files, more)
	return NewDisk(t, megabytes, Shell, files)
}

// StartNode starts the node of a guest of NodeDisk and waits until it
// answers. Its log is in /var/log/node.log.
func (g *Guest) StartNode(t *testing.T, arguments ...string) {
	t.Helper()
	out, code := g.Try(t, strings.ReplaceAll(`
echo "nameserver 127.0.0.1" > /etc/resolv.conf
setsid berth node ARGUMENTS >>/var/log/node.log 2>&1 &
n=0
until berth version >/dev/null 2>&1 && berth info >/dev/null 2>&1; do
	n=$((n+1)); [ $n -lt 60 ] || { tail -n 40 /var/log/node.log; exit 1; }
	sleep 0.5
done`, "ARGUMENTS", strings.Join(arguments, " ")))
	if code != 0 {
		t.Fatalf("the node did not start in the guest:\n%s", out)
	}
}

// JSON runs a script in the guest and reads the JSON that it prints: one
// value, or one a line.
func JSON[T any](t *testing.T, g *Guest, script string) []T {
	t.Helper()
	var all []T
	out := g.Run(t, script)
	if strings.HasPrefix(strings.TrimSpace(out), "[") {
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return all
	}
	decoder := json.NewDecoder(strings.NewReader(out))
	for decoder.More() {
		var v T
		if err := decoder.Decode(&v); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		all = append(all, v)
	}
	return all
}
