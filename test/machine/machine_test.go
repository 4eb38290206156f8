package machine

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// roleVar says which test of other tests this program is.
const roleVar = "MACHINE_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVar) != "" {
		os.Exit(Run(m, Empty, "/etc/berth"))
	}
	os.Exit(m.Run())
}

// play runs a test of this program on a machine of its own.
func play(t *testing.T, role, test string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+test+"$")
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = t.Output()
	return cmd
}

// TestGuest leaves things behind of every kind, and goes on until it is killed.
func TestGuest(t *testing.T) {
	if os.Getenv(roleVar) != "leave" {
		t.Skip("skipped: another test runs this one")
	}
	dir := Folder(t)
	state := filepath.Join(dir, "state")
	for _, dir := range append(leavings(Name(), Instance(state)), state) {
		Must(t, os.MkdirAll(dir, 0o755))
	}
	Must(t, unix.Mount("left", state, "tmpfs", 0, ""))
	left := exec.Command("sleep", "1000")
	left.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	Must(t, left.Start())
	Must(t, os.WriteFile(filepath.Join(leavings(Name(), "")[0], "cgroup.procs"), []byte(strconv.Itoa(left.Process.Pid)), 0o600))
	if out, err := exec.Command("ip", "link", "add", "left0", "type", "bridge").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fmt.Printf("left %s %s\n", Name(), Instance(state))
	select {}
}

// leavings are the cgroups that the guest leaves, by its machine's name.
func leavings(machine, instance string) []string {
	where := "/sys/fs/cgroup/pids"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		where = "/sys/fs/cgroup"
	}
	return []string{filepath.Join(where, machine+"-x"), filepath.Join(where, machine+"-x", "below"), filepath.Join(where, instance, "container")}
}

// What is killed takes its machine along, and leaves only what the next one
// takes away; what somebody still holds stays as it is.
func TestKilledRunLeavesNothing(t *testing.T) {
	Need(t)
	guest := play(t, "leave", "TestGuest")
	out, err := guest.StdoutPipe()
	Must(t, err)
	Must(t, guest.Start())
	t.Cleanup(func() { _ = guest.Process.Kill(); _ = guest.Wait() })
	var name, instance string
	for lines := bufio.NewScanner(out); name == "" && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "left %s %s", &name, &instance)
	}
	if name == "" {
		t.Fatal("the guest leaves nothing")
	}
	dir := filepath.Join(os.TempDir(), name)
	all := append(leavings(name, instance), dir)
	there := func() (found []string) {
		for _, dir := range all {
			if _, err := os.Stat(dir); err == nil {
				found = append(found, dir)
			}
		}
		return found
	}
	sweepBy := func() {
		t.Helper()
		if out, err := play(t, "sweep", "TestNobody").Output(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}

	if sweepBy(); len(there()) != len(all) {
		t.Fatalf("of one who lives there are only %q", there())
	}
	Must(t, guest.Process.Kill())
	_ = guest.Wait()
	Until(t, "nobody holds the folder", func() error {
		lock, err := held(dir)
		if err == nil {
			err = lock.Close()
		}
		return err
	})
	if mounts := Mounts(t, dir); len(mounts) > 0 {
		t.Errorf("left mounted: %q", mounts)
	}
	if _, err := net.InterfaceByName("left0"); err == nil {
		t.Error("the bridge is left")
	}
	Until(t, "all have ended", func() error {
		if procs, err := os.ReadFile(filepath.Join(leavings(name, instance)[0], "cgroup.procs")); err != nil || len(procs) > 0 {
			return fmt.Errorf("%s run, %w", procs, err)
		}
		return nil
	})
	if sweepBy(); len(there()) > 0 {
		t.Errorf("left: %q", there())
	}
}

// TestHome is on a machine where nobody else is.
func TestHome(t *testing.T) {
	if os.Getenv(roleVar) == "" {
		Need(t)
		if out, err := play(t, "look", "TestHome").Output(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if links, err := net.Interfaces(); err != nil || len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links %v, %v", links, err)
	}
	if files, err := os.ReadDir("/etc/berth"); err != nil || len(files) > 0 {
		t.Errorf("in what is hidden: %v, %v", files, err)
	}
	if !strings.HasPrefix(t.TempDir(), filepath.Join(os.TempDir(), "")) || filepath.Base(os.TempDir()) != Name() {
		t.Errorf("files go to %s", t.TempDir())
	}
	// Who has lost its parent is reaped.
	out, err := exec.Command("sh", "-c", "sleep 0.01 & echo $!").Output()
	Must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	Must(t, err)
	Until(t, "it has gone", func() error {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		return nil
	})
}

// The code of the tests is that of the run, and what they are asked to do comes
// to them.
func TestEnd(t *testing.T) {
	Need(t)
	for role, want := range map[string]int{"pass": 0, "fail": 1, "quit": 2} {
		cmd := play(t, role, "TestOutcome")
		out, err := cmd.StdoutPipe()
		Must(t, err)
		cmd.Stderr = nil
		Must(t, cmd.Start())
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == "waits" {
				Must(t, cmd.Process.Signal(unix.SIGQUIT)) // as go test does when it has waited long enough
			}
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%s ends with %d, want %d", role, got, want)
		}
	}
}

func TestOutcome(t *testing.T) {
	switch os.Getenv(roleVar) {
	case "fail":
		t.Fail()
	case "quit":
		fmt.Println("waits")
		select {}
	}
}
