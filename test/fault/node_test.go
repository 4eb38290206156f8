package fault

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/client"
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
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	if os.Getuid() != 0 {
		return m.Run() // each test says what it lacks
	}
	dir, err := os.MkdirTemp("", "berth-fault-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program, archive = filepath.Join(dir, "berth"), filepath.Join(dir, "image.tar")
	for _, line := range []string{
		"cd ../.. && CGO_ENABLED=0 go build -o " + program + " ./cmd/berth",
		"../first-image.sh " + image + " > " + archive,
	} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", line, err, out)
			return 1
		}
	}
	return m.Run()
}

// node is a berth node of a test's own, with its keeper.
type node struct {
	*client.Client
	dir, root, state, socket, config string

	process *exec.Cmd
	ended   chan struct{}
}

// newNode starts a node that has the image, and takes all of it away when the
// test is over. Settings are lines of its configuration file.
func newNode(t *testing.T, settings ...string) *node {
	t.Helper()
	n := prepare(t, settings...)
	n.start(t)
	n.ok(t, "load", "-i", archive)
	return n
}

// prepare makes the folders of a node.
func prepare(t *testing.T, settings ...string) *node {
	t.Helper()
	if os.Getuid() != 0 {
		missing(t, "root")
	}
	dir, err := os.MkdirTemp("", "fault-")
	must(t, err)
	n := &node{
		dir: dir, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"),
		socket: filepath.Join(dir, "state", "berth.sock"), config: filepath.Join(dir, "config.toml"),
	}
	n.configure(t, settings...)
	t.Cleanup(func() { n.discard(t) })
	return n
}

func (n *node) configure(t *testing.T, settings ...string) {
	t.Helper()
	must(t, os.WriteFile(n.config, []byte(strings.Join(settings, "\n")+"\n"), 0o600))
}

// command is the node's own command line.
func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program, append([]string{"node", "--root", n.root, "--state", n.state, "--config", n.config}, args...)...)
	cmd.Env = append(os.Environ(), "BERTH_SOCKET=", "BERTH_STATE=", "BERTH_ROOT=")
	return cmd
}

// start runs the node until it answers.
func (n *node) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	cmd := n.command("--socket", n.socket, "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(t, cmd.Start())
	ended := make(chan struct{})
	n.process, n.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	n.Client = client.New(n.socket)
	eventually(t, "the node answers", func() error {
		select {
		case <-ended:
			t.Fatalf("the node ended: %s\n%s", cmd.ProcessState, n.log())
		default:
		}
		return n.Ping(t.Context())
	})
}

// kill ends the node without giving it a chance.
func (n *node) kill(t *testing.T) {
	t.Helper()
	must(t, n.process.Process.Kill())
	<-n.ended
	n.Close()
}

// stop ends the node as one should.
func (n *node) stop(t *testing.T) {
	t.Helper()
	must(t, n.process.Process.Signal(syscall.SIGTERM))
	select {
	case <-n.ended:
	case <-time.After(15 * time.Second):
		t.Fatalf("the node does not end\n%s", n.log())
	}
	n.Close()
}

// again kills the node and starts another in its place.
func (n *node) again(t *testing.T) { t.Helper(); n.kill(t); n.start(t) }

func (n *node) pid() int { return n.process.Process.Pid }

func (n *node) keeper(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.state, "keeper.pid"))
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	return pid
}

// killKeeper ends the keeper and waits until it is gone.
func (n *node) killKeeper(t *testing.T) {
	t.Helper()
	pid := n.keeper(t)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "the keeper is gone", func() error {
		if running(pid) {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
}

func (n *node) log() string {
	text, _ := os.ReadFile(filepath.Join(n.dir, "node.log"))
	keeper, _ := os.ReadFile(filepath.Join(n.state, "keeper.log"))
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
	cmd.Env = append(os.Environ(), "BERTH_SOCKET="+n.socket, "DOCKER_CONFIG="+n.dir)
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// missing skips a test that lacks something, but not where all is installed.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", what)
	}
	t.Skipf("skipped: it needs %s", what)
}

// eventually waits until fn has no objection any more.
func eventually(t testing.TB, what string, fn func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(8 * time.Second)
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: %v", what, err)
		}
	}
}
