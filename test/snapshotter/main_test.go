package snapshotter

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is berth; peers is where containerd's programs lie.
var program, peers string

// rungs are the ways to keep layers that whole engines are tried on.
var rungs = []string{"lcfs", "overlay"}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		return m.Run() // each test says what it lacks
	}
	dir, err := os.MkdirTemp("", "berth-snapshotter-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "berth")
	if peers, err = filepath.Abs("../../.cache/peer"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	lines := []string{"cd ../.. && CGO_ENABLED=0 go build -o " + program + " ./cmd/berth"}
	for _, peer := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		path := filepath.Join(peers, peer)
		lines = append(lines, fmt.Sprintf(
			"[ -x %s ] || { cd ../../bench/peer && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o %s github.com/containerd/containerd/v2/cmd/%s; }", path, path, peer))
	}
	for _, line := range lines {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", line, err, out)
			return 1
		}
	}
	return m.Run()
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("CI has to run this as root")
	}
	t.Skip("skipped: mounts take root")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for done to hold.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// daemon is a program in the background. Its log is shown if the test fails.
type daemon struct {
	argv   []string
	env    []string
	socket string // is there when it serves
	log    bytes.Buffer
	cmd    *exec.Cmd
}

func (d *daemon) start(t testing.TB) {
	t.Helper()
	must(t, os.RemoveAll(d.socket))
	d.cmd = exec.Command(d.argv[0], d.argv[1:]...)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	must(t, d.cmd.Start())
	until(t, d.argv[0]+" serves", func() bool {
		_, err := os.Stat(d.socket)
		return err == nil
	})
}

// end sends the signal and waits for the end.
func (d *daemon) end(signal os.Signal) error {
	if d.cmd == nil {
		return nil
	}
	_ = d.cmd.Process.Signal(signal)
	err := d.cmd.Wait()
	d.cmd = nil
	return err
}

// newSnapshotter starts berth snapshotter in folders of its own.
func newSnapshotter(t testing.TB, root, driver string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "bs-") // short enough for a socket
	must(t, err)
	d := &daemon{socket: filepath.Join(dir, "s")}
	d.argv = []string{program, "snapshotter", "--root", root, "--address", d.socket, "--storage-driver", driver, "--log-level", "debug"}
	d.start(t)
	t.Cleanup(func() {
		if err := d.end(syscall.SIGTERM); err != nil {
			t.Errorf("berth snapshotter ended with %v", err)
		}
		if t.Failed() {
			t.Logf("berth snapshotter says:\n%s", d.log.String())
		}
		must(t, os.RemoveAll(dir))
	})
	return d
}

// mounted lists the mounts below dir.
func mounted(t testing.TB, dir string) (targets []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if target := strings.Fields(line)[1]; strings.HasPrefix(target, dir+"/") {
			targets = append(targets, target)
		}
	}
	return targets
}
