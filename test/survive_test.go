package test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/test/machine"
)

// A dead node takes nothing along: containers go on, are reached, and are
// taken up again as they are.
func TestContainersSurviveTheNode(t *testing.T) {
	n := newNode(t)
	pids := map[string]string{}
	for i := range 19 {
		name := fmt.Sprint("c", i)
		n.must(t, "run", "-d", "--name", name, image, "sleep", "1000")
		pids[name] = n.must(t, "inspect", "-f", "{{.state.pid}}", name)
	}
	n.must(t, "run", "-d", "--name", "web", "-p", "127.0.0.1::80", image, "httpd", "-f", "-h", "/var/www")
	pids["web"] = n.must(t, "inspect", "-f", "{{.state.pid}}", "web")
	address := "http://" + n.must(t, "port", "web", "80")
	answers := func() error {
		response, err := (&http.Client{Timeout: 3 * time.Second}).Get(address)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(text), "Berth is serving") {
			err = fmt.Errorf("answer %q", text)
		}
		return err
	}
	machine.Until(t, "the port answers", answers)
	n.Kill()
	if err := answers(); err != nil {
		t.Errorf("the port does not answer while the node is dead: %v", err)
	}
	n.Start(t)
	for name, want := range pids {
		if got := n.must(t, "inspect", "-f", "{{.state.status}} {{.state.pid}}", name); got != "running "+want {
			t.Errorf("container %s is %s, want running %s", name, got, want)
		}
	}
	machine.Until(t, "the port answers again", answers)
	if got := "http://" + n.must(t, "port", "web", "80"); got != address {
		t.Errorf("the port is now %s, was %s", got, address)
	}
	if got := n.must(t, "exec", "c7", "echo", "works"); got != "works" {
		t.Errorf("exec says %q", got)
	}
}

// A container that ends while the node is away is removed as was asked for,
// and its exit code still arrives.
func TestEndWithoutTheNode(t *testing.T) {
	n := newNode(t)
	running := n.command(t, "run", "--rm", "--name", "short", image, "sh", "-c", "sleep 2; exit 9")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	machine.Until(t, "it runs", func() error {
		return n.command(t, "exec", "short", "true").Run()
	})
	n.must(t, "run", "-d", "--name", "kept", image, "sh", "-c", "sleep 1; exit 8")
	n.Kill()
	<-time.After(3 * time.Second)
	n.Start(t)
	if got := n.must(t, "wait", "kept"); got != "8" {
		t.Errorf("wait says %s, want 8", got)
	}
	var exit *exec.ExitError
	if err := running.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("run ended with %v, want 9", err)
	}
	machine.Until(t, "it is removed", func() error {
		if all := n.must(t, "ps", "-a", "--format", "{{.Names}}"); all != "kept" {
			return fmt.Errorf("there is %q", all)
		}
		return nil
	})
}

// A container whose process is killed starts again if that was asked for.
func TestRestartAfterKill(t *testing.T) {
	n := newNode(t)
	for name, policy := range map[string]string{"always": "always", "failing": "on-failure:3", "never": "no"} {
		n.must(t, "run", "-d", "--name", name, "--restart", policy, image, "sleep", "1000")
		before := n.must(t, "inspect", "-f", "{{.state.pid}}", name)
		kill(t, before)
		want := "running"
		if policy == "no" {
			want = "exited"
		}
		machine.Until(t, name+" is "+want, func() error {
			if got := n.must(t, "inspect", "-f", stateOf, name); !strings.HasPrefix(got, want) || got == want+" "+before {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	}
}

// stateOf is a container's status and its pid, if it has one.
const stateOf = "{{.state.status}} {{with index .state `pid`}}{{.}}{{end}}"

func kill(t *testing.T, pid string) {
	t.Helper()
	var number int
	if _, err := fmt.Sscan(pid, &number); err != nil || number <= 1 {
		t.Fatalf("pid %q: %v", pid, err)
	}
	if err := syscall.Kill(number, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// The keeper is replaced when it dies, as often as it does.
func TestContainersSurviveTheKeeper(t *testing.T) {
	n := newNode(t)
	n.must(t, "run", "-d", "--name", "stays", image, "sleep", "1000")
	for range 2 {
		before := n.Helper("keeper")
		n.KillKeeper(t)
		n.anotherKeeper(t, before, "run", "--rm", image, "true")
	}
	n.must(t, "rm", "-f", "stays")
}

// Without node and keeper at once what is said afterwards is what is so.
func TestNodeAndKeeperDie(t *testing.T) {
	n := newNode(t)
	for _, name := range []string{"a", "b"} {
		n.must(t, "run", "-d", "--name", name, image, "sleep", "1000")
	}
	n.Kill()
	n.KillKeeper(t)
	n.Start(t)
	machine.Until(t, "the states are right", func() error {
		for _, name := range []string{"a", "b"} {
			var status string
			var pid int
			text := n.must(t, "inspect", "-f", stateOf, name)
			_, _ = fmt.Sscan(text, &status, &pid)
			if alive := pid > 1 && syscall.Kill(pid, 0) == nil; alive != (status == "running") {
				return fmt.Errorf("%s is %s, its process is there: %t", name, text, alive)
			}
		}
		return nil
	})
	n.must(t, "rm", "-f", "a", "b")
	n.must(t, "run", "--rm", image, "true")
}
