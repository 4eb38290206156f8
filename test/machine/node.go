package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Node is a berth node in folders of its own, with its keeper. It has the
// settings that are in its file.
type Node struct {
	Daemon
	Dir, Root, State, Config string
}

// NewNode makes the folders of a node of the program, and its settings.
func NewNode(t testing.TB, program string, settings ...string) *Node {
	t.Helper()
	dir := Folder(t)
	n := &Node{Dir: dir, Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Config: filepath.Join(dir, "config.toml")}
	n.Socket, n.Log = filepath.Join(n.State, "berth.sock"), filepath.Join(dir, "node.log")
	n.Argv = []string{program, "node", "--root", n.Root, "--state", n.State, "--config", n.Config, "--socket", n.Socket}
	n.Env = []string{"BERTH_SOCKET=", "BERTH_STATE=", "BERTH_ROOT=", "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}
	n.Ready = n.answers
	n.Configure(t, settings...)
	return n
}

// answers says why the node does not answer yet. Who only connects may wait for
// one that is about to start.
func (n *Node) answers() error {
	conn, err := net.Dial("unix", n.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err = io.WriteString(conn, "OPTIONS * HTTP/1.0\r\n\r\n"); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	return err
}

// Configure writes the node's file of settings, which count from its next start.
func (n *Node) Configure(t testing.TB, settings ...string) {
	t.Helper()
	Must(t, os.WriteFile(n.Config, []byte(strings.Join(settings, "\n")+"\n"), 0o600))
}

// Helper is the pid of a process that the node has started: keeper or lazy. 0:
// there is none.
func (n *Node) Helper(role string) int {
	text, _ := os.ReadFile(filepath.Join(n.State, role+".pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if line, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); !strings.HasPrefix(string(line), n.Argv[0]+"\x00") {
		return 0
	}
	return pid
}

// KillHelper ends such a process without giving it a chance, and waits until it
// has ended. It does not mind if there is none.
func (n *Node) KillHelper(t testing.TB, role string) {
	t.Helper()
	pid := n.Helper(role)
	if pid <= 1 {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	Must(t, err)
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
			Must(t, err)
			return
		}
	}
}

// KillKeeper ends the keeper, which there has to be.
func (n *Node) KillKeeper(t testing.TB) {
	t.Helper()
	if n.Helper("keeper") == 0 {
		t.Fatal("there is no keeper")
	}
	n.KillHelper(t, "keeper")
}

// Says is the end of the node's log, and of its keeper's.
func (n *Node) Says() string {
	return n.Daemon.Says() + "keeper:\n" + tail(filepath.Join(n.State, "keeper.log"), 4000)
}

// Instance is what the node calls its bridge, its rules and its cgroup.
func (n *Node) Instance() string { return Instance(n.State) }

// Instance is what a node with that state folder calls what it makes.
func Instance(state string) string {
	sum := sha256.Sum256([]byte(state))
	return "berth-" + hex.EncodeToString(sum[:4])
}

// Cgroups are those of the node's containers, in every hierarchy; each comes
// after the one that it is in.
func (n *Node) Cgroups() []string {
	return slices.DeleteFunc(cgroups(n.Instance()), func(dir string) bool {
		return filepath.Base(dir) == n.Instance() || strings.HasSuffix(dir, n.Instance()+"/keeper")
	})
}

// Veths are those that containers of the node's own network have. Some wait for
// pods to come.
func (n *Node) Veths() (links []string) {
	for _, line := range Lines("ip", "-o", "link", "show", "type", "veth") {
		if strings.Contains(line, " master "+n.Instance()+" ") {
			links = append(links, line)
		}
	}
	return links
}

// Mounts are those below the node's folder, but for what it keeps ready for
// pods to come.
func (n *Node) Mounts(t testing.TB) []string {
	t.Helper()
	return slices.DeleteFunc(Mounts(t, n.Dir), func(target string) bool { return strings.Contains(target, "/.new-") })
}
