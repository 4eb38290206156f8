package network

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// stragglerWait bounds the wait for plugins that were killed.
const stragglerWait = 5 * time.Second

// endPlugins ends what is left of the plugins that an earlier node had started
// when it was killed, with all that they have started: those who asked are
// gone, and what an ADD goes on to make beside the DEL of this node would stay.
// They are known by the container that their environment names.
func (s *Set) endPlugins(ctx context.Context) error {
	ours := map[string]bool{}
	for _, a := range s.attached() {
		for _, e := range a.endpoints {
			if e.cni {
				ours[a.container] = true
			}
		}
	}
	if len(ours) == 0 {
		return nil
	}
	// Twice: one that was looked at may have left a child behind meanwhile.
	for late := time.Now().Add(stragglerWait); killPlugins(ours)+killPlugins(ours) > 0; {
		if time.Now().After(late) {
			return errs.New(errs.Timeout, "plugins of an earlier node were killed, but do not end")
		}
		if !pause(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

// killPlugins kills the processes that work for one of the containers, and
// counts them.
func killPlugins(containers map[string]bool) (found int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !containers[worksFor(pid)] {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// Asked again: now the number cannot be another's.
		if containers[worksFor(pid)] && !errors.Is(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0), unix.ESRCH) {
			found++
		}
		_ = unix.Close(fd)
	}
	return found
}

// worksFor is the container that a process was told of as CNI has it; "" where
// it is no plugin, or a zombie.
func worksFor(pid int) string {
	environ, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	const key = "CNI_CONTAINERID="
	switch at := bytes.Index(environ, []byte("\x00"+key)); {
	case bytes.HasPrefix(environ, []byte(key)):
		environ = environ[len(key):]
	case at >= 0:
		environ = environ[at+1+len(key):]
	default:
		return ""
	}
	id, _, _ := bytes.Cut(environ, []byte{0})
	return string(id)
}
