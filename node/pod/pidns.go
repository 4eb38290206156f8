package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// A PID namespace that containers are to join is bound to a file. Its process
// may end at any time, and the number then be that of a process of another pod,
// or of the machine.

// pinPIDNamespace binds that of a process to a new file at target. is says what
// process it is, by its number: asked after the namespace was opened.
func pinPIDNamespace(pid int, is func() int, target string) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
	ended := errs.New(errs.Conflict, "PID namespace: process %d has ended", pid)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ended
	case err != nil:
		return fmt.Errorf("PID namespace: %w", err)
	}
	defer ns.Close()
	if is() != pid {
		return ended
	}
	file, err := os.OpenFile(target, os.O_CREATE, 0o400)
	if err != nil {
		return fmt.Errorf("PID namespace: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("PID namespace: %w", err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("PID namespace: pin it: %w", err)
	}
	return nil
}

// unpin takes such a file away; none is no error.
func unpin(target string) error {
	if err := unmountAll(target); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// pidFile is where the PID namespace is pinned that the containers of a pod
// share.
func (s *Set) pidFile(p *pod) string { return s.podPath(p, "pid") }

// targetFile is where the one is pinned that a container joins.
func (s *Set) targetFile(m *member) string { return s.podPath(m.pod, m.id+".pid") }
