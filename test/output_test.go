package test

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"berth/test/machine"
)

// talks runs a container that counts, and rests after each ten thousand lines;
// while is called with the number of every line, just before the next is read.
// Each line is there once, in its order, and the exit code arrives.
func (n *node) talks(t *testing.T, lines, code int, rest string, while func(line int)) {
	t.Helper()
	cmd := n.command(t, "run", "--name", "talks", image, "sh", "-c",
		fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); [ $((i %% 10000)) = 0 ] && sleep %s; done; exit %d`, lines, rest, code))
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.StdoutPipe()
	machine.Must(t, err)
	machine.Must(t, cmd.Start())
	next := 0
	for scanner := bufio.NewScanner(out); scanner.Scan(); next++ {
		if want := fmt.Sprint(next); scanner.Text() != want {
			t.Fatalf("line %q where %q has to be\n%s", scanner.Text(), want, failed.String())
		}
		while(next)
	}
	if next != lines {
		t.Errorf("%d lines of %d\n%s", next, lines, failed.String())
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("run ended with %v, want %d\n%s", err, code, failed.String())
	}
}

// What runs under a node that is killed again and again loses no line, shows
// none twice, and has its exit code.
func TestRunSurvivesTheNode(t *testing.T) {
	n := newNode(t)
	n.talks(t, 100_000, 42, "0.4", func(line int) {
		if line%30_000 == 15_000 {
			n.Kill()
			n.Start(t)
		}
	})
}

// What runs while its keeper is killed again and again, and once the node
// just after it, loses no line, shows none twice, and has its exit code.
func TestRunSurvivesTheKeeper(t *testing.T) {
	n := newNode(t)
	const lines = 100_000
	n.talks(t, lines, 43, "0.3", func(line int) {
		if line%25_000 != 12_000 {
			return
		}
		before := n.Helper("keeper")
		n.KillKeeper(t)
		n.anotherKeeper(t, before, "exec", "talks", "true")
		if line > lines/2 {
			n.Kill()
			n.Start(t)
		}
	})
}
