package snapshot

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// UserNamespaces keeps one user namespace for each pair of maps that mounts
// were made with: they are few.
type UserNamespaces struct {
	mu     sync.Mutex
	byMaps map[string]*os.File
}

// Get returns the namespace of the maps; it stays open.
func (u *UserNamespaces) Get(uids, gids []IDMap) (*os.File, error) {
	key := fmt.Sprint(uids, gids)
	u.mu.Lock()
	defer u.mu.Unlock()
	if ns := u.byMaps[key]; ns != nil {
		return ns, nil
	}
	ns, err := newUserNamespace(uids, gids)
	if err != nil {
		return nil, fmt.Errorf("user namespace for shifted owners: %w", err)
	}
	if u.byMaps == nil {
		u.byMaps = map[string]*os.File{}
	}
	u.byMaps[key] = ns
	return ns, nil
}

// Close closes them all. Mounts made with them stay.
func (u *UserNamespaces) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, ns := range u.byMaps {
		_ = ns.Close()
	}
	u.byMaps = nil
}

// newUserNamespace has a child made in a namespace of its own, stopped before
// it runs a single instruction, and takes the namespace from it.
func newUserNamespace(uids, gids []IDMap) (*os.File, error) {
	runtime.LockOSThread() // the thread that starts a traced child is its tracer
	defer runtime.UnlockOSThread()
	child, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: sysMaps(uids), GidMappings: sysMaps(gids), GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = child.Kill()
		_, _ = child.Wait()
	}()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid))
}

func sysMaps(maps []IDMap) []syscall.SysProcIDMap {
	sys := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		sys[i] = syscall.SysProcIDMap{ContainerID: int(m.Container), HostID: int(m.Host), Size: int(m.Size)}
	}
	return sys
}
