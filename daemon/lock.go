package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// claim makes this process the one of its role that works in state: it holds
// a lock on <state>/<role>.pid, which says its pid. errs.Conflict: another
// process holds it. The claim ends with the process or with release.
func claim(state, role string) (release func(), err error) {
	path := filepath.Join(state, role+".pid")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644) //nolint:gosec // any user may know the pid
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", state, err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := os.ReadFile(path)
		_ = file.Close()
		return nil, errs.New(errs.Conflict, "another %s works in %s (pid %s): stop it, or give this one folders of its own with --root, --state and --socket",
			role, state, strings.TrimSpace(string(holder)))
	} else if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err = file.Truncate(0); err == nil {
		_, err = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	// The file stays: removing it would let two processes lock two files of
	// one name.
	return func() { _ = file.Truncate(0); _ = file.Close() }, nil
}
