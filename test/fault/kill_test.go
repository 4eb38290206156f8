package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
	"berth/spec"
	"berth/test/machine"
)

// TestNodeKilledAnywhere kills the node some milliseconds into each verb, so
// that over the rounds it dies in the middle of every step.
func TestNodeKilledAnywhere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.inventory(t)
	for round := range 24 {
		delay := time.Duration(round*round) * 100 * time.Microsecond
		for _, verb := range []string{"create", "start", "exec", "stop", "rm", "run"} {
			name := fmt.Sprintf("c%d", round)
			switch verb {
			case "create":
			case "run":
				name += "r"
			default: // whatever came of the last step
				if _, err := n.ContainerGet(t.Context(), name); errors.Is(err, errs.NotFound) {
					n.ok(t, "create", "--name", name, "-p", "0:80", "-v", "/data", image, "sleep", "1000")
				}
			}
			if (round+len(verb))%3 != 0 {
				continue // every step in turn
			}
			if verb == "exec" || verb == "stop" {
				n.ok(t, "start", name)
			}
			args := map[string][]string{
				"create": {"create", "--name", name, "-p", "0:80", "-v", "/data", image, "sleep", "1000"},
				"start":  {"start", name},
				"exec":   {"exec", name, "true"},
				"stop":   {"stop", "-t", "0", name},
				"rm":     {"rm", "-f", "-v", name},
				"run":    {"run", "-d", "--name", name, "-p", "0:80", "-v", "/data", image, "sleep", "1000"},
			}[verb]
			cmd := n.cli(t, args...)
			machine.Must(t, cmd.Start())
			<-time.After(delay)
			n.kill()
			n.Start(t)
			_ = cmd.Wait() // it may have come through, or not
			if _, err := n.ContainerGet(t.Context(), name); err == nil {
				n.consistent(t, name)
			}
		}
		for _, name := range []string{fmt.Sprintf("c%d", round), fmt.Sprintf("c%dr", round)} {
			if err := n.ContainerRemove(t.Context(), name, true, true); err != nil && !errors.Is(err, errs.NotFound) {
				t.Errorf("rm -f %s: %v", name, err)
			}
		}
	}
	n.works(t)
	n.same(t, before)
}

// TestBothKilled kills node and keeper at once: the containers' pipes are
// gone, and policies say what comes back.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.inventory(t)
	for _, policy := range []string{"no", "on-failure", "always", "unless-stopped"} {
		n.sleeper(t, policy, "--restart", policy, "-p", "0:80")
	}
	n.sleeper(t, "removed", "--rm", "-v", "/data")
	n.kill()
	n.KillKeeper(t)
	n.Start(t)
	for _, policy := range []string{"no", "on-failure", "always", "unless-stopped"} {
		machine.Until(t, "policy "+policy, func() error {
			c, err := n.ContainerGet(t.Context(), policy)
			machine.Must(t, err)
			if running := c.State.Status == spec.Running; running != (policy != "no") {
				return fmt.Errorf("it is %s: %+v", c.State.Status, c.State)
			}
			return nil
		})
		n.consistent(t, policy)
		if policy != "no" {
			n.ok(t, "exec", policy, "true")
		}
		n.ok(t, "rm", "-f", policy)
	}
	// One that is removed at its end stays a little for those who watched it.
	if r := n.berth(t, "rm", "-f", "-v", "removed"); r.code != 0 && !strings.Contains(r.err, "no such container") {
		t.Error(r)
	}
	n.same(t, before)
}

// TestKeeperKilled kills the keeper below a container that runs.
func TestKeeperKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.inventory(t)
	n.ok(t, "run", "-d", "--name", "c", image, "sh", "-c", "trap 'exit 7' TERM; while :; do echo line; sleep 0.02; done")
	for range 5 {
		n.KillKeeper(t)
		n.ok(t, "exec", "c", "true")
	}
	n.stop(t)
	n.Start(t)
	n.ok(t, "stop", "c")
	if got := n.ok(t, "inspect", "--format", "{{.State.ExitCode}}", "c"); got != "7" {
		t.Errorf("exit code %s", got)
	}
	n.ok(t, "rm", "c")
	n.same(t, before)
}

// TestTwoNodes starts a second node in the folders of the first.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sleeper(t, "c")
	before := n.inventory(t)
	other := t.TempDir()
	for name, args := range map[string][]string{
		"state":  {"--root", filepath.Join(other, "root")},
		"root":   {"--state", filepath.Join(other, "state")},
		"both":   {},
		"socket": {"--root", filepath.Join(other, "root2"), "--state", filepath.Join(other, "state2"), "--socket", n.Socket},
	} {
		cmd := exec.Command(program, append([]string{"node", "--root", n.Root, "--state", n.State, "--config", n.Config}, args...)...)
		cmd.Env = append(os.Environ(), n.Env...)
		r := within(t, cmd)
		if r.code != 1 || !strings.Contains(r.err, "another") {
			t.Errorf("the same %s: %s", name, r)
		}
		machine.Must(t, n.Ping(t.Context()))
	}
	n.ok(t, "exec", "c", "true")
	n.same(t, before)
	left := (&node{Node: &machine.Node{Daemon: machine.Daemon{Argv: []string{program}}, Dir: other, State: filepath.Join(other, "state2")}}).processes(t)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	n.ok(t, "rm", "-f", "c")
	n.works(t)
}

// within is the outcome of a command that has to end by itself, soon.
func within(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Signal(os.Interrupt) })
	defer timer.Stop()
	return outcome(t, cmd)
}
