package cri

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// program is berth; tools is where build.sh puts what it makes.
var program, tools string

// inside marks the process that has namespaces of its own.
const inside = "BERTH_CRI_INSIDE"

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	switch {
	case os.Getuid() != 0:
		return m.Run(), nil // each test says what it lacks
	case os.Getenv(inside) == "":
		return enter()
	}
	dir, err := os.MkdirTemp("", "berth-cri-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "bin", "berth")
	build := exec.Command("go", "build", "-o", program, "./cmd/berth")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build berth: %w\n%s", err, out)
	}
	if tools, err = filepath.Abs("../../.cache/cri"); err != nil {
		return 0, err
	}
	if err := ownWorld(); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// enter runs the tests in a process with namespaces of its own.
func enter() (int, error) {
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.Env = append(os.Environ(), inside+"=yes")
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread() // the parent's death is its thread's
	var exit *exec.ExitError
	if err := again.Run(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return again.ProcessState.ExitCode(), nil
}

// ownWorld brings up the network and hides the folders that programs know by
// fixed names.
func ownWorld() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make the mounts shared again: %w", err)
	}
	for _, dir := range []string{"/etc/cni", "/var/lib/cni", "/run/cni", "/run/netns", "/etc/berth", "/etc/containerd", "/etc/docker", "/run/nri", "/etc/nri", "/opt/nri", "/etc/cdi", "/run/cdi"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cri", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w\n%s", err, out)
	}
	return nil
}

// need skips a test where it cannot run: without root, or without what build.sh
// makes.
func need(t testing.TB, programs ...string) {
	t.Helper()
	lacks := func(what string) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI has to have %s", what)
		}
		t.Skipf("skipped: this takes %s", what)
	}
	if os.Getuid() != 0 {
		lacks("root")
	}
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(tools, name)); err != nil {
			lacks(name + ", which test/cri/build.sh makes")
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for objection to have none any more.
func until(t testing.TB, what string, objection func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for {
		err := objection()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within 20 s: %v", what, err)
		}
	}
}
