package fault

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/client"
	"berth/test/machine"
)

// image is what every node has from the start: busybox.
const image = "busybox:latest"

// program is berth, and archive the image, made once for all tests.
var program, archive string

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil { // they mostly wait
		panic(err)
	}
	os.Exit(machine.Run(m, func() (err error) {
		if program, err = machine.Berth(); err == nil {
			archive, err = machine.FirstImage(image)
		}
		return err
	}, "/etc/berth", "/etc/cni", "/var/lib/cni"))
}

// node is a berth node of a test's own, with its keeper.
type node struct {
	*machine.Node
	*client.Client
}

// newNode starts a node that has the image, and takes all of it away when the
// test is over. Settings are lines of its configuration file.
func newNode(t *testing.T, settings ...string) *node {
	t.Helper()
	n := prepare(t, settings...)
	n.Start(t)
	n.ok(t, "load", "-i", archive)
	return n
}

// prepare makes the folders of a node.
func prepare(t *testing.T, settings ...string) *node {
	t.Helper()
	machine.Need(t)
	n := &node{Node: machine.NewNode(t, program, settings...)}
	n.Client = client.New(n.Socket)
	n.Argv = append(n.Argv, "--log-level", "debug")
	n.Ready = func() error { return n.Ping(t.Context()) }
	t.Cleanup(func() { n.discard(t) })
	return n
}

// kill ends the node without giving it a chance.
func (n *node) kill() {
	n.Kill()
	n.Close()
}

// stop ends the node as one should.
func (n *node) stop(t *testing.T) {
	t.Helper()
	n.End(t)
	n.Close()
}

// again kills the node and starts another in its place.
func (n *node) again(t *testing.T) { t.Helper(); n.kill(); n.Start(t) }

// log is all that the node and its keeper have said.
func (n *node) log() string {
	text, _ := os.ReadFile(n.Log)
	keeper, _ := os.ReadFile(filepath.Join(n.State, "keeper.log"))
	return string(text) + "keeper:\n" + string(keeper)
}

// result is what a command of the CLI came to.
type result struct {
	out, err string
	code     int
}

func (r result) String() string { return fmt.Sprintf("exit code %d\n%s%s", r.code, r.out, r.err) }

// cli is a berth command against the node.
func (n *node) cli(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "BERTH_SOCKET="+n.Socket, "DOCKER_CONFIG="+n.Dir)
	return cmd
}

// berth runs a berth command to its end.
func (n *node) berth(t *testing.T, args ...string) result {
	t.Helper()
	return outcome(t, n.cli(t, args...))
}

func outcome(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{out.String(), failed.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that has to succeed, and returns what it prints.
func (n *node) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := n.berth(t, args...)
	if r.code != 0 {
		t.Fatalf("berth %s: %s", strings.Join(args, " "), r)
	}
	return strings.TrimSpace(r.out)
}

// fails runs a command that has to fail with a code, and to say why in these
// words.
func (n *node) fails(t *testing.T, code int, words string, args ...string) {
	t.Helper()
	r := n.berth(t, args...)
	if r.code != code || !strings.Contains(strings.ToLower(r.err), strings.ToLower(words)) {
		t.Errorf("berth %.200s: %.2000s\nwant exit code %d and %q", strings.Join(args, " "), r, code, words)
	}
	if strings.Contains(r.err, "goroutine ") || strings.Contains(r.err, "internal error") {
		t.Errorf("berth %.200s: the error is not one for people: %.2000s", strings.Join(args, " "), r.err)
	}
}

// works tries a whole life of a container.
func (n *node) works(t *testing.T) {
	t.Helper()
	if got := n.ok(t, "run", "--rm", image, "echo", "works"); got != "works" {
		t.Errorf("a container says %q", got)
	}
}
