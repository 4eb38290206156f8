package stats

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// Traffic is what went over the interfaces of a network namespace, but for lo:
// that of the process pid, or where there is none the one mounted at path.
// errs.NotFound: it is gone.
func (r *Reader) Traffic(pid int, path string) ([]spec.InterfaceStats, error) {
	f := r.take()
	defer r.buffers.Put(f)
	var text []byte
	if pid > 0 {
		text = f.read(filepath.Join(r.proc, strconv.Itoa(pid), "net/dev"))
	} else if err := within(path, func() { text = f.read("/proc/thread-self/net/dev") }); err != nil {
		return nil, err
	}
	if text == nil && f.err == nil {
		return nil, errs.New(errs.NotFound, "there is no network namespace %s of process %d", path, pid)
	}
	return parseNetDev(text), f.err
}

// within calls fn on a thread that is in the network namespace at path.
func within(path string, fn func()) error {
	there, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errs.New(errs.NotFound, "network namespace %s: %w", path, err)
	}
	defer unix.Close(there)
	runtime.LockOSThread()
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer unix.Close(here)
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	fn()
	if unix.Setns(here, unix.CLONE_NEWNET) == nil { // else the thread ends with this goroutine
		runtime.UnlockOSThread()
	}
	return nil
}
