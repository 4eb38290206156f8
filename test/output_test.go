package test

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// What runs while its keeper is killed again and again, and once the node
// just after it, loses no line, shows none twice, and has its exit code.
func TestRunSurvivesTheKeeper(t *testing.T) {
	n := newNode(t)
	const lines = 100_000
	cmd := n.command(t, "run", "--name", "talks", image, "sh", "-c",
		fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); [ $((i %% 10000)) = 0 ] && sleep 0.3; done; exit 43`, lines))
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	next := 0
	for scanner := bufio.NewScanner(out); scanner.Scan(); next++ {
		if want := fmt.Sprint(next); scanner.Text() != want {
			t.Fatalf("line %q where %q has to be\n%s", scanner.Text(), want, failed.String())
		}
		if next%25_000 != 12_000 {
			continue
		}
		before := n.Helper("keeper")
		n.KillKeeper(t)
		n.anotherKeeper(t, before, "exec", "talks", "true")
		if next > lines/2 {
			n.Kill()
			n.Start(t)
		}
	}
	if next != lines {
		t.Errorf("%d lines of %d\n%s", next, lines, failed.String())
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 43 {
		t.Errorf("run ended with %v, want 43\n%s", err, failed.String())
	}
}
