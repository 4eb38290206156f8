// Package machine gives a package of tests a machine of its own: namespaces for
// its processes, its mounts and its network, and a folder for its files. They
// end with the tests, however those end: whoever is killed takes along all that
// it has started, and what is left on the real machine, which is files and
// cgroups, bears the name of the folder. The folder is locked as long as one of
// its processes lives; each run begins with taking away what belongs to folders
// that nobody holds.
//
// Besides it has what such tests say again and again: wait until, must, a
// program in the background, what is mounted, which cgroups there are.
package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// folderVar names the folder of the machine that a process is on; with fresh
// before it that process is to begin the machine.
const (
	folderVar = "BERTH_TEST_MACHINE"
	fresh     = "fresh:"
)

// Run runs a package's tests on a machine of their own and returns their exit
// code. The hidden folders are empty there. furnish makes what all tests share.
// Without root the tests run where they are, each to say what it lacks.
func Run(m *testing.M, furnish func() error, hidden ...string) int {
	code, err := 1, error(nil)
	switch {
	case os.Getuid() != 0:
		return m.Run()
	case os.Getenv(folderVar) == "":
		code, err = enter()
	case strings.HasPrefix(os.Getenv(folderVar), fresh):
		code, err = begin(hidden)
	default:
		if err = furnish(); err == nil {
			return m.Run()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Empty is for tests that share nothing.
func Empty() error { return nil }

// enter runs the tests in new namespaces, and clears up after them.
func enter() (int, error) {
	if err := sweep(); err != nil {
		return 0, fmt.Errorf("what earlier tests have left: %w", err)
	}
	dir, lock, err := claim()
	if err != nil {
		return 0, err
	}
	again := exec.Command("/proc/self/exe")
	again.Args = os.Args
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.Env = append(os.Environ(), folderVar+"="+fresh+dir, "TMPDIR="+dir)
	again.ExtraFiles = []*os.File{lock}
	again.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // the parent's death is its thread's
	err = again.Start()
	if err == nil {
		relay(again.Process.Pid)
		err = again.Wait()
	}
	if _, ended := errors.AsType[*exec.ExitError](err); ended {
		err = nil
	}
	if os.Getenv("KEEP") == "" {
		err = errors.Join(err, remove(dir))
	}
	return again.ProcessState.ExitCode(), errors.Join(err, lock.Close())
}

// relay hands on what this process is asked to do.
func relay(pid int) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	go func() {
		for s := range signals {
			_ = unix.Kill(pid, s.(syscall.Signal))
		}
	}()
}

// begin is the first process of the machine: it has it ready, starts the tests
// and reaps whoever has lost its parent, until they end.
func begin(hidden []string) (int, error) {
	unix.CloseOnExec(3) // the lock: nobody's but this process's, with whose end the others are killed
	if err := settle(hidden); err != nil {
		return 0, err
	}
	if err := os.Setenv(folderVar, strings.TrimPrefix(os.Getenv(folderVar), fresh)); err != nil {
		return 0, err
	}
	tests, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, err
	}
	relay(tests)
	for {
		var status syscall.WaitStatus
		switch pid, err := syscall.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, err
		case pid == tests && status.Signaled():
			return 0, fmt.Errorf("the tests were ended by %s", status.Signal())
		case pid == tests:
			return status.ExitStatus(), nil
		}
	}
}

// settle makes the namespaces those of a machine.
func settle(hidden []string) error {
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} { // from the real machine no more; within this one as usual
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("part the mounts: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range hidden {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as such folders are
			return err
		}
		if err := unix.Mount("hidden", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w\n%s", err, out)
	}
	return nil
}

// Name is the machine's: no other one has it, so that what bears it may lie
// where all machines meet, in /sys/fs/cgroup.
func Name() string { return filepath.Base(os.Getenv(folderVar)) }

// Folder makes a folder with a name so short that sockets fit into it. It goes
// with the machine, or with whoever has made it.
func Folder(t testing.TB) string {
	t.Helper()
	for i := 1; ; i++ {
		dir := filepath.Join(os.Getenv(folderVar), strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o711); !errors.Is(err, fs.ErrExist) { //nolint:gosec // containers with shifted owners reach their files through it
			Must(t, err)
			return dir
		}
	}
}

// Berth builds the program into the machine's folder.
func Berth() (program string, err error) {
	program = filepath.Join(os.Getenv(folderVar), "bin", "berth")
	return program, shell("CGO_ENABLED=0 go build -o " + program + " ./cmd/berth")
}

// FirstImage makes the archive of an image of busybox.
func FirstImage(name string) (archive string, err error) {
	archive = filepath.Join(os.Getenv(folderVar), "first.tar")
	return archive, shell("test/first-image.sh " + name + " > " + archive)
}

// shell runs a line in the tree's root.
func shell(line string) error {
	root, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(root)))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", line, err, out)
	}
	return nil
}
