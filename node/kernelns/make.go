package kernelns

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

func (w Want) has(k kind) bool {
	switch k.flag {
	case unix.CLONE_NEWNET:
		return w.Net
	case unix.CLONE_NEWIPC:
		return w.IPC
	}
	return w.UTS
}

func (w Want) flags() (flags int) {
	for _, k := range kinds {
		if w.has(k) {
			flags |= k.flag
		}
	}
	return flags
}

// apart runs fn on a thread of its own that may enter other namespaces. One
// that cannot come back is not used again.
func (s *Set) apart(fn func() error) (err error) {
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread()
		err = fn()
		for i, k := range kinds {
			if back := unix.Setns(int(s.own[i].Fd()), k.flag); back != nil {
				err = errors.Join(err, fmt.Errorf("leave a namespace: %w", back))
				return // and the thread ends
			}
		}
		runtime.UnlockOSThread()
	})
	done.Wait()
	return err
}

// makePlain makes namespaces that the host's root owns.
func (s *Set) makePlain(dir string, want Want) error {
	if want.flags() == 0 {
		return nil
	}
	return s.apart(func() error {
		if err := unix.Unshare(want.flags()); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if want.Net {
			if err := s.furnish(); err != nil {
				return err
			}
		}
		for _, k := range kinds {
			if want.has(k) {
				if err := s.pin("/proc/thread-self/ns/", dir, k); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// makeOwned makes a user namespace and others that it owns. A process of many
// threads cannot enter a user namespace, so a child is made in them, stopped
// before it runs a single instruction.
func (s *Set) makeOwned(dir string, want Want) error {
	if len(want.Idmap.UIDs) == 0 || len(want.Idmap.GIDs) == 0 {
		return errs.New(errs.Invalid, "a user namespace needs a map of users and one of groups")
	}
	runtime.LockOSThread() // the thread that starts a traced child is its tracer
	defer runtime.UnlockOSThread()
	child, err := os.StartProcess("/proc/self/exe", []string{"namespaces"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | uintptr(want.flags()),
			UidMappings: mapsOf(want.Idmap.UIDs), GidMappings: mapsOf(want.Idmap.GIDs), GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: syscall.SIGKILL,
		},
	})
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer func() {
		_ = child.Kill()
		_, _ = child.Wait()
	}()
	from := "/proc/" + strconv.Itoa(child.Pid) + "/ns/"
	if err := bind(from+"user", filepath.Join(dir, "user")); err != nil {
		return err
	}
	for _, k := range kinds {
		if want.has(k) {
			if err := s.pin(from, dir, k); err != nil {
				return err
			}
		}
	}
	if !want.Net {
		return nil
	}
	return s.apart(func() error {
		if err := enter(filepath.Join(dir, "net"), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return s.furnish()
	})
}

func mapsOf(maps []spec.IDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.Container), HostID: int(m.Host), Size: int(m.Length)}
	}
	return out
}

// furnish is what every network namespace has. It runs inside.
func (s *Set) furnish() error {
	if err := loopbackUp(); err != nil {
		return err
	}
	for name, value := range s.cfg.Sysctls {
		err := write(plainName(name), value)
		// What this kernel has not, or what is about groups that a user
		// namespace has not, stays as it is.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("set sysctl %s: %w", name, err)
		}
	}
	return nil
}

// loopbackUp uses an ioctl, which costs less than a netlink socket.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// pin binds a namespace of those in from to its file in dir.
func (s *Set) pin(from, dir string, k kind) error {
	path := filepath.Join(dir, k.file)
	if k.flag != unix.CLONE_NEWNET || s.cfg.NetDir == "" {
		return bind(from+k.file, path)
	}
	at := filepath.Join(s.cfg.NetDir, s.prefix()+strings.ToLower(rand.Text()[:16]))
	if err := os.Symlink(at, path); err != nil { // before: what it leads to is removed with it
		return err
	}
	return bind(from+k.file, at)
}

func bind(namespace, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := unix.Mount(namespace, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

func enter(path string, flag int) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), flag); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}
