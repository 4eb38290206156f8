package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/client"
	"berth/test/machine"
)

// What all tests share, made once: the program, and busybox as a
// docker-archive.
var program, archive string

// image is the name of busybox in every node of a test.
const image = "busybox:latest"

func TestMain(m *testing.M) {
	os.Exit(machine.Run(m, func() (err error) {
		if program, err = machine.Berth(); err != nil {
			return err
		}
		for _, name := range []string{"buildkitd", "buildctl"} { // where berth looks for them, as make buildkit puts them
			built, err := filepath.Abs("../.cache/clients/bin/" + name)
			if err == nil {
				err = os.Symlink(built, filepath.Join(filepath.Dir(program), name))
			}
			if err != nil {
				return err
			}
		}
		archive, err = machine.FirstImage(image)
		return err
	}, "/etc/berth", "/etc/cni", "/var/lib/cni"))
}

// node is a berth node in folders of its own, with its keeper.
type node struct {
	*machine.Node
	*client.Client
}

// newNode starts a node that has the image. It is taken away with all that
// there is of it, and the test fails if the machine is not as before then.
func newNode(t testing.TB) *node {
	t.Helper()
	machine.Need(t)
	n := &node{Node: machine.NewNode(t, program)}
	n.Client = client.New(n.Socket)
	n.Ready = func() error { return n.Ping(t.Context()) }
	t.Cleanup(func() { n.discard(t) })
	n.Start(t)
	n.must(t, "load", "-q", "-i", archive)
	return n
}

// command is a command line of berth for this node.
func (n *node) command(t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "BERTH_SOCKET="+n.Socket, "DOCKER_CONFIG="+n.Dir)
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

// anotherKeeper waits until the node has another keeper than that, which works.
func (n *node) anotherKeeper(t testing.TB, than int, proof ...string) {
	t.Helper()
	machine.Until(t, "there is another keeper", func() error {
		if now := n.Helper("keeper"); now == than || now == 0 {
			return fmt.Errorf("its pid is %d", now)
		}
		return n.command(t, proof...).Run()
	})
}

// discard removes the containers, ends node and keeper and looks for what is
// left of them.
func (n *node) discard(t testing.TB) {
	if t.Failed() {
		t.Logf("log of the node:\n%s", n.Says())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
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
	machine.Until(t, "nothing of containers is left", func() error { return n.left(t) })
	n.Close()
	n.End(t)
	n.KillHelper(t, "keeper")
	n.KillHelper(t, "lazy")
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Error(err)
	}
}

// left says what there still is of containers.
func (n *node) left(t testing.TB) error {
	var all []string
	for _, pattern := range []string{n.State + "/netns/*", n.State + "/containers/*", n.State + "/runtime/*/*", n.Root + "/logs/*"} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	all = append(append(all, n.Mounts(t)...), n.Cgroups()...)
	ready, _ := filepath.Glob(n.State + "/kernelns/.new-*") // kept for pods to come
	if links := n.Veths(); len(links) > len(ready) {
		all = append(all, links...)
	}
	if len(all) > 0 {
		return fmt.Errorf("left:\n%s", strings.Join(all, "\n"))
	}
	return nil
}
