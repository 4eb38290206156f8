package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Must ends a test that cannot go on.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is how long something may take that takes a moment: a machine may
// have much to do besides.
const patience = time.Minute

// Until waits for objection to have none any more.
func Until(t testing.TB, what string, objection func() error) {
	t.Helper()
	UntilFor(t, patience, what, objection)
}

// UntilFor is Until for what may take as long as that.
func UntilFor(t testing.TB, limit time.Duration, what string, objection func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(limit)
	for {
		err := objection()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}

// Await waits for done to hold.
func Await(t testing.TB, what string, done func() bool) {
	t.Helper()
	Until(t, what, func() error {
		if !done() {
			return errors.New("it is not so")
		}
		return nil
	})
}

// Need skips a test where it cannot run: without root, or without a program,
// which test/setup.sh brings. Where all is installed that fails it.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		Lacks(t, "root")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			Lacks(t, program+", which test/setup.sh brings")
		}
	}
}

// Lacks skips a test that lacks something, but not where all is installed.
func Lacks(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI has to have %s", what)
	}
	t.Skipf("skipped: this takes %s", what)
}

// Lines are those that a command prints, with single blanks.
func Lines(name string, args ...string) (all []string) {
	out, _ := exec.Command(name, args...).Output()
	for line := range strings.Lines(string(out)) {
		all = append(all, strings.Join(strings.Fields(line), " "))
	}
	return all
}

// Mounts are those below a folder, each after the one that it is on.
func Mounts(t testing.TB, dir string) (targets []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	Must(t, err)
	for line := range strings.Lines(string(table)) {
		if target := strings.Fields(line)[4]; strings.HasPrefix(target, dir+"/") {
			targets = append(targets, target)
		}
	}
	return targets
}

// Unmount takes away what is mounted below a folder, and there.
func Unmount(t testing.TB, dir string) {
	t.Helper()
	for _, target := range slices.Backward(append([]string{dir}, Mounts(t, dir)...)) {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && target != dir {
			t.Errorf("unmount %s: %v", target, err)
		}
	}
}

// Changes says what is not there any more, and what is there besides. Folders of
// layers may go: those of containers that were removed go in the background.
func Changes(before, now []string) error {
	var diff strings.Builder
	for _, line := range now {
		if !slices.Contains(before, line) {
			diff.WriteString("\n  left: " + line)
		}
	}
	for _, line := range before {
		if !slices.Contains(now, line) && !strings.Contains(line, "/root/layers/") {
			diff.WriteString("\n  gone: " + line)
		}
	}
	if diff.Len() == 0 {
		return nil
	}
	return fmt.Errorf("it is not as before:%s", diff.String())
}
