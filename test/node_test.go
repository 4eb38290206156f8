package test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/client"
)

// What all tests share, made once: the program, and busybox as a
// docker-archive.
var program, archive string

// image is the name of busybox in every node of a test.
const image = "busybox:latest"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "berth-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program, archive = filepath.Join(dir, "bin", "berth"), filepath.Join(dir, "busybox.tar")
	for _, line := range []string{
		"cd .. && CGO_ENABLED=0 go build -o " + program + " ./cmd/berth",
		"./first-image.sh " + image + " > " + archive,
	} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", line, err, out)
			return 1
		}
	}
	for _, name := range []string{"buildkitd", "buildctl"} { // where berth looks for them, as make buildkit puts them
		built, err := filepath.Abs("../.cache/clients/bin/" + name)
		if err == nil {
			err = os.Symlink(built, filepath.Join(dir, "bin", name))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// node is a berth node in folders of its own, with its keeper.
type node struct {
	*client.Client
	dir, root, state, socket string
	config                   string // its file of settings, empty at first

	process *exec.Cmd
	ended   chan struct{}
}

// needRoot skips a test that runs containers where that cannot be.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("CI has to run this as root")
	}
	t.Skip("skipped: running containers takes root")
}

// newNode starts a node that has the image. It is taken away with all that
// there is of it, and the test fails if the machine is not as before then.
func newNode(t testing.TB) *node {
	t.Helper()
	needRoot(t)
	// Not t.TempDir: the names of tests are too long for a socket.
	dir, err := os.MkdirTemp("", "bt-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: dir, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "state", "berth.sock"), config: filepath.Join(dir, "config.toml")}
	if err := os.WriteFile(n.config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.discard(t) })
	n.start(t)
	n.must(t, "load", "-q", "-i", archive)
	return n
}

// start runs the node until it answers.
func (n *node) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "node", "--root", n.root, "--state", n.state, "--socket", n.socket, "--config", n.config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	n.process, n.ended, n.Client = cmd, ended, client.New(n.socket)
	go func() { _ = cmd.Wait(); close(ended) }()
	n.eventually(t, "the node answers", func() error {
		select {
		case <-ended:
			t.Fatalf("the node ended: %s\n%s", cmd.ProcessState, n.log())
		default:
		}
		return n.Ping(t.Context())
	})
}

// killNode ends the node without giving it a chance.
func (n *node) killNode() {
	_ = n.process.Process.Kill()
	<-n.ended
}

// keeper is the pid of the node's keeper, 0 where there is none.
func (n *node) keeper() int { return n.pid("keeper") }

func (n *node) pid(role string) int {
	text, _ := os.ReadFile(filepath.Join(n.state, role+".pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// killKeeper ends the keeper, and waits until it is gone.
func (n *node) killKeeper(t testing.TB) {
	t.Helper()
	pid := n.keeper()
	if pid <= 1 {
		t.Fatal("there is no keeper")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil && !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
}

// command is a command line of berth for this node.
func (n *node) command(t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "BERTH_SOCKET="+n.socket, "DOCKER_CONFIG="+n.dir)
	return cmd
}

// must runs a berth command that has to succeed and returns what it prints.
func (n *node) must(t testing.TB, args ...string) string {
	t.Helper()
	var failed strings.Builder
	cmd := n.command(t, args...)
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("berth %s: %v\n%s", strings.Join(args, " "), err, failed.String())
	}
	return strings.TrimSpace(string(out))
}

func (n *node) log() string {
	node, _ := os.ReadFile(filepath.Join(n.dir, "node.log"))
	keeper, _ := os.ReadFile(filepath.Join(n.state, "keeper.log"))
	return string(node) + "keeper:\n" + string(keeper)
}

// eventually waits until fn has no objection any more.
func (n *node) eventually(t testing.TB, what string, fn func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within 20 s: %v\n%s", what, err, n.log())
		}
	}
}

// instance is what the node calls its bridge, its rules and its cgroup.
func (n *node) instance() string {
	sum := sha256.Sum256([]byte(n.state))
	return "berth-" + hex.EncodeToString(sum[:4])
}

// discard removes the containers, ends node and keeper and looks for what is
// left of them.
func (n *node) discard(t testing.TB) {
	if t.Failed() {
		text := n.log()
		t.Logf("log of the node:\n%s", text[max(0, len(text)-6000):])
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if all, err := n.PodList(ctx, nil); err == nil {
		for _, p := range all {
			if err := n.PodRemove(ctx, p.ID, true); err != nil {
				t.Errorf("remove pod %s: %v", p.Config.Name, err)
			}
		}
	}
	if all, err := n.ContainerList(ctx, true, nil); err == nil {
		for _, c := range all {
			if err := n.ContainerRemove(ctx, c.ID, true, true); err != nil {
				t.Errorf("remove container %s: %v", c.Name, err)
			}
		}
	}
	n.eventually(t, "nothing of containers is left", n.left)
	n.Close()
	_ = n.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(15 * time.Second):
		_ = n.process.Process.Signal(syscall.SIGQUIT) // it says where it hangs
		<-n.ended
		t.Errorf("the node did not end within 15 s of TERM:\n%s", n.log())
	}
	if pid := n.keeper(); pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if conn, err := net.Dial("unixpacket", filepath.Join(n.state, "lazy.sock")); err == nil { // else its pid may be another's
		_ = conn.Close()
		if pid := n.pid("lazy"); pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	n.sweep()
	if err := os.RemoveAll(n.dir); err != nil {
		t.Error(err)
	}
}

// left says what there still is of containers.
func (n *node) left() error {
	var all []string
	for _, pattern := range []string{n.state + "/netns/*", n.state + "/containers/*", n.state + "/runtime/*/*", n.root + "/logs/*"} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if target := strings.Fields(line)[4]; strings.HasPrefix(target, n.dir+"/") && !strings.Contains(target, "/.new-") { // kept ready for pods
			all = append(all, "mount "+target)
		}
	}
	for _, dir := range n.cgroups() {
		if filepath.Base(filepath.Dir(dir)) == n.instance() {
			all = append(all, dir)
		}
	}
	ready, _ := filepath.Glob(n.state + "/kernelns/.new-*")
	links, _ := exec.Command("ip", "-o", "link", "show", "type", "veth", "master", n.instance()).Output()
	if strings.Count(string(links), "\n") > len(ready) {
		all = append(all, string(links))
	}
	if len(all) > 0 {
		return fmt.Errorf("left:\n%s", strings.Join(all, "\n"))
	}
	return nil
}

// cgroups are the node's, in every hierarchy, the deepest first.
func (n *node) cgroups() []string {
	var all []string
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.instance())
	for _, root := range append(roots, "/sys/fs/cgroup/"+n.instance()) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	return all
}

// sweep takes away what a node leaves on purpose: bridges, rules, cgroups.
func (n *node) sweep() {
	links, _ := exec.Command("ip", "-o", "link", "show", "type", "bridge").Output()
	suffix := strings.TrimPrefix(n.instance(), "berth-")
	for line := range strings.Lines(string(links)) {
		if _, rest, _ := strings.Cut(line, ": "); strings.Contains(rest, suffix) {
			name, _, _ := strings.Cut(rest, ":")
			_ = exec.Command("ip", "link", "del", name).Run()
		}
	}
	tables, _ := exec.Command("nft", "list", "tables").Output()
	for line := range strings.Lines(string(tables)) {
		if strings.Contains(line, suffix) {
			_ = exec.Command("nft", append([]string{"delete"}, strings.Fields(line)...)...).Run()
		}
	}
	for _, dir := range n.cgroups() {
		_ = os.Remove(dir)
	}
}
