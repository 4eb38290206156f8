package network

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// stragglerWait bounds the wait for plugins that were killed.
const stragglerWait = 5 * time.Second

// stragglers are the plugins that an earlier node had started when it was
// killed, with all that they have started. Those who asked are gone. What an
// ADD goes on to make beside the DEL of this node would stay, so that it is
// killed; a DEL is let go on, for another one may not find all of what it was
// about to take back, and the next DEL of the same container comes after it.
// They are known by what their environment says.
type stragglers struct {
	mu      sync.Mutex
	leaving map[string][]*os.File // pidfds of DELs, by container
}

// findStragglers ends the ADDs, and notes the DELs.
func (s *Set) findStragglers(ctx context.Context) error {
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
	found := &stragglers{leaving: map[string][]*os.File{}}
	s.podCNI.earlier = found
	if s.cni != nil {
		s.cni.earlier = found
	}
	// Twice: one that was looked at may have left a child behind meanwhile.
	for late := time.Now().Add(stragglerWait); found.look(ours)+found.look(ours) > 0; {
		if time.Now().After(late) {
			return errs.New(errs.Timeout, "plugins of an earlier node were killed, but do not end")
		}
		if !pause(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

// look goes through the processes, and counts those that were killed.
func (f *stragglers) look(containers map[string]bool) (killed int) {
	f.close() // they are found again
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		container, _ := worksFor(pid)
		if !containers[container] {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		process := os.NewFile(uintptr(fd), "plugin")
		// Asked again: now the number cannot be another's.
		switch again, command := worksFor(pid); {
		case again == container && command == "DEL":
			f.leaving[container] = append(f.leaving[container], process)
			continue
		case again == container && signalled(process):
			killed++
		}
		_ = process.Close() // it was only looked at
	}
	return killed
}

// wait returns when no DEL of an earlier node is at work on a container, and
// kills those that take longer than they may.
func (f *stragglers) wait(ctx context.Context, container string, atMost time.Duration) {
	if f == nil {
		return
	}
	f.mu.Lock()
	leaving := f.leaving[container]
	delete(f.leaving, container)
	f.mu.Unlock()
	late := time.Now().Add(atMost)
	for _, process := range leaving {
		for !hasEnded(process) && !time.Now().After(late) && pause(ctx, 5*time.Millisecond) {
		}
		signalled(process)
		_ = process.Close() // it was only looked at
	}
}

func (f *stragglers) close() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, all := range f.leaving {
		for _, process := range all {
			_ = process.Close() // it was only looked at
		}
	}
	clear(f.leaving)
}

// signalled kills a process, and says whether it was there.
func signalled(process *os.File) bool {
	return !errors.Is(unix.PidfdSendSignal(int(process.Fd()), unix.SIGKILL, nil, 0), unix.ESRCH)
}

func hasEnded(process *os.File) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// worksFor is the container that a process was told of as CNI has it, and what
// it does; "" where it is no plugin, or a zombie.
func worksFor(pid int) (container, command string) {
	environ, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if value, ok := bytes.CutPrefix(entry, []byte("CNI_CONTAINERID=")); ok {
			container = string(value)
		} else if value, ok := bytes.CutPrefix(entry, []byte("CNI_COMMAND=")); ok {
			command = string(value)
		}
	}
	return container, command
}
