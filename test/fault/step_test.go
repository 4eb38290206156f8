package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
	"berth/spec"
	"berth/test/machine"
)

// frail is a runtime that fails as it is told to: its plan is one line, step
// and way, in a file beside it. Without a plan it is crun, or else runc.
const frail = `#!/bin/sh
here=${0%/*}
for step; do
	case $step in create|start|run|exec|kill|delete|state|pause|resume|update) break ;; esac
done
real=$(command -v crun || command -v runc)
read -r planned way <"$here/plan"
[ "$planned" = "$step" ] || exec "$real" "$@"
case $way in
before) kill -9 $$ ;;
during) "$real" "$@" & sleep 0.00$(($$ % 9)); kill -9 $! $$ ;;
after)  "$real" "$@"; kill -9 $$ ;;
fails)  "$real" "$@"; exit 1 ;;
babbles) yes '{"level":"error","msg":"babble"}' | head -c 50000 >&2; exit 7 ;;
slow)   touch "$here/halt"; while [ -e "$here/halt" ]; do sleep 0.02; done; exec "$real" "$@" ;;
slow-after) "$real" "$@"; code=$?; touch "$here/halt"; while [ -e "$here/halt" ]; do sleep 0.02; done; exit $code ;;
esac
`

// newFrailNode is a node whose usual runtime fails as it is told to.
func newFrailNode(t *testing.T) (n *node, plan func(string)) {
	t.Helper()
	n = prepare(t)
	program := filepath.Join(n.Dir, "frail")
	machine.Must(t, os.WriteFile(program, []byte(frail), 0o700)) //nolint:gosec // it is a program
	n.Configure(t, `runtime = "frail"`, "[runtimes.frail]", fmt.Sprintf("path = %q", program), `args = ["--cgroup-manager=cgroupfs"]`)
	plan = func(what string) {
		t.Helper()
		machine.Must(t, os.WriteFile(filepath.Join(n.Dir, "plan"), []byte(what+"\n"), 0o600))
	}
	plan("")
	n.Start(t)
	n.ok(t, "load", "-i", archive)
	return n, plan
}

// TestRuntimeDies kills the runtime program at each of its steps.
func TestRuntimeDies(t *testing.T) {
	t.Parallel()
	n, plan := newFrailNode(t)
	n.works(t)
	before := n.inventory(t)
	for _, way := range []string{"before", "during", "during", "during", "after", "fails", "babbles"} {
		t.Run("run "+way, func(t *testing.T) {
			n.forRemoval(t, "c")
			plan("run " + way)
			r := n.berth(t, "run", "--name", "c", image, "sleep", "1000")
			if way != "during" && r.code != 125 || len(r.err) > 10_000 {
				t.Errorf("%.1000s", r)
			}
			plan("")
			n.ok(t, "start", "c")
			n.ok(t, "rm", "-f", "c")
			n.same(t, before)
		})
		t.Run("exec "+way, func(t *testing.T) {
			n.forRemoval(t, "c")
			n.sleeper(t, "c")
			running := n.inventory(t)
			plan("exec " + way)
			if r := n.berth(t, "exec", "c", "sleep", "0.01"); r.code == 0 && way != "during" || len(r.err) > 10_000 {
				t.Errorf("%.1000s", r)
			}
			plan("")
			n.same(t, running)
			if got := n.ok(t, "exec", "c", "echo", "well"); got != "well" {
				t.Errorf("exec says %q", got)
			}
			n.ok(t, "rm", "-f", "c")
			n.same(t, before)
		})
	}
}

// TestKilledWhileTheRuntimeWorks kills the node, the keeper or both while the
// runtime program is in the middle of a step.
func TestKilledWhileTheRuntimeWorks(t *testing.T) {
	t.Parallel()
	n, plan := newFrailNode(t)
	before := n.inventory(t)
	halt := filepath.Join(n.Dir, "halt")
	for _, way := range []string{"slow", "slow-after"} {
		for _, victim := range []string{"node", "keeper", "both"} {
			kill := func(t *testing.T) {
				t.Helper()
				machine.Until(t, "the runtime is there", func() error { _, err := os.Stat(halt); return err })
				plan("")
				if victim != "keeper" {
					n.kill()
				}
				if victim != "node" {
					n.KillKeeper(t)
				}
				if victim != "keeper" {
					n.Start(t)
				}
				machine.Must(t, os.Remove(halt))
			}
			t.Run("run "+way+" "+victim, func(t *testing.T) {
				n.forRemoval(t, "c")
				n.ok(t, "create", "--name", "c", "-p", "0:80", "-v", "/anonymous", image, "sleep", "1000")
				plan("run " + way)
				start := n.background(t, "start", "c")
				kill(t)
				start.end(t)
				n.consistent(t, "c")
				n.ok(t, "start", "c")
				n.ok(t, "exec", "c", "true")
				n.ok(t, "rm", "-f", "-v", "c")
				n.same(t, before)
			})
			t.Run("exec "+way+" "+victim, func(t *testing.T) {
				n.forRemoval(t, "c")
				n.sleeper(t, "c")
				running := n.inventory(t)
				plan("exec " + way)
				exec := n.background(t, "exec", "c", "true")
				kill(t)
				exec.end(t)
				n.consistent(t, "c")
				if victim != "both" {
					n.same(t, running)
				} else {
					n.ok(t, "start", "c")
				}
				n.ok(t, "exec", "c", "true")
				n.ok(t, "rm", "-f", "c")
				n.same(t, before)
			})
		}
	}
}

// sleeper starts a container and waits until its command is all that
// runs: the runtime program may end a little later than the start.
func (n *node) sleeper(t *testing.T, name string, options ...string) {
	t.Helper()
	n.ok(t, append(append([]string{"run", "-d", "--name", name}, options...), image, "sleep", "1000")...)
	machine.Until(t, "the command runs", func() error {
		if all := strings.Join(n.processes(t), "\n"); strings.Contains(all, "/.launch/") {
			return errors.New(all)
		}
		return nil
	})
}

// forRemoval takes a container away even where its test failed.
func (n *node) forRemoval(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		if err := n.ContainerRemove(context.Background(), name, true, true); err != nil && !errors.Is(err, errs.NotFound) {
			t.Errorf("rm -f: %v", err)
		}
	})
}

// background is a command that runs meanwhile.
type background struct {
	done chan struct{}
	result
}

func (n *node) background(t *testing.T, args ...string) *background {
	t.Helper()
	b := &background{done: make(chan struct{})}
	cmd := n.cli(t, args...)
	go func() {
		defer close(b.done)
		b.result = outcome(t, cmd)
	}()
	return b
}

// end waits for the command, which comes to some end soon.
func (b *background) end(t *testing.T) result {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(2 * time.Minute):
		t.Fatal("a command does not end")
	}
	return b.result
}

// consistent looks whether a container is what its state says.
func (n *node) consistent(t *testing.T, ref string) {
	t.Helper()
	machine.Until(t, "the state of "+ref, func() error {
		c, err := n.ContainerGet(t.Context(), ref)
		machine.Must(t, err)
		var inside []string
		for _, line := range n.processes(t) {
			pid, _, _ := strings.Cut(line, " ")
			if groups, _ := os.ReadFile("/proc/" + pid + "/cgroup"); strings.Contains(string(groups), c.ID) {
				inside = append(inside, line)
			}
		}
		switch alive := c.State.Status == spec.Running || c.State.Status == spec.Paused; {
		case alive && !running(c.State.Pid):
			return fmt.Errorf("it is %s, but there is no process %d", c.State.Status, c.State.Pid)
		case !alive && len(inside) > 0:
			return fmt.Errorf("it is %s, but there is %v", c.State.Status, inside)
		case !alive && c.State.Pid != 0:
			return fmt.Errorf("it is %s, with pid %d", c.State.Status, c.State.Pid)
		}
		return nil
	})
}
