package kernelns

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// setting is one sysctl.
type setting struct {
	name  string // below /proc/sys
	value string
	in    kind
}

// settings are sysctls, those of interfaces that are not there yet apart.
type settings struct{ early, late []setting }

// settingsOf sorts the sysctls by the namespace that they belong to.
func settingsOf(want Want) (settings, error) {
	var out settings
	if len(want.Hostname) > 64 {
		return out, errs.New(errs.Invalid, "host name %q is longer than 64 characters", want.Hostname)
	}
	for name, value := range want.Sysctls {
		plain := plainName(name)
		k, ok := kindOf(plain)
		if !ok || !filepath.IsLocal(plain) || filepath.Clean(plain) != plain {
			return out, errs.New(errs.Invalid, "sysctl %s does not belong to the namespaces of a pod", name)
		}
		if !want.has(k) {
			return out, errs.New(errs.Invalid, "sysctl %s cannot be set: the pod shares its %s namespace with the host", name, k.file)
		}
		one := setting{plain, value, k}
		if ofInterface(plain) {
			out.late = append(out.late, one)
		} else {
			out.early = append(out.early, one)
		}
	}
	order := func(a, b setting) int { return cmp.Compare(a.name, b.name) }
	slices.SortFunc(out.early, order)
	slices.SortFunc(out.late, order)
	return out, nil
}

// plainName is the path below /proc/sys. A name is written with dots or with
// slashes, as the first of them says; then the other one is part of a word,
// as in net/ipv4/conf/eth0.7/arp_notify.
func plainName(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// ipcSysctls are those that each IPC namespace has.
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/msg_next_id", "kernel/auto_msgmni",
	"kernel/sem", "kernel/sem_next_id",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced", "kernel/shm_next_id",
}

func kindOf(name string) (kind, bool) {
	switch {
	case strings.HasPrefix(name, "net/"):
		return kinds[0], true
	case strings.HasPrefix(name, "fs/mqueue/"), slices.Contains(ipcSysctls, name):
		return kinds[1], true
	case name == "kernel/domainname": // the host name has its own way
		return kinds[2], true
	}
	return kind{}, false
}

// ofInterface: net/ipv4/conf/eth0/arp_notify, net/ipv6/neigh/eth0/….
func ofInterface(name string) bool {
	part := strings.Split(name, "/")
	return len(part) >= 5 && (part[2] == "conf" || part[2] == "neigh") && !slices.Contains([]string{"all", "default", "lo"}, part[3])
}

// set writes a host name and sysctls in the namespaces of a folder.
func (s *Set) set(dir, hostname string, list []setting) error {
	if hostname == "" && len(list) == 0 {
		return nil
	}
	return s.apart(func() error {
		if hostname != "" {
			path := filepath.Join(dir, "uts")
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return errs.New(errs.Invalid, "host name %q cannot be set: the pod shares its uts namespace with the host", hostname)
			}
			if err := enter(path, unix.CLONE_NEWUTS); err != nil {
				return err
			}
			if err := unix.Sethostname([]byte(hostname)); err != nil {
				return fmt.Errorf("set host name: %w", err)
			}
		}
		entered := 0
		for _, one := range list {
			if entered&one.in.flag == 0 {
				if err := enter(filepath.Join(dir, one.in.file), one.in.flag); err != nil {
					return err
				}
				entered |= one.in.flag
			}
			err := write(one.name, one.value)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return errs.New(errs.Invalid, "this kernel has no sysctl %s", one.name)
			case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE):
				return errs.New(errs.Invalid, "sysctl %s does not take %q", one.name, one.value)
			case err != nil:
				return fmt.Errorf("set sysctl %s: %w", one.name, err)
			}
		}
		return nil
	})
}

// write sets a sysctl of the calling thread's namespaces; the thread is one
// of apart.
func write(name, value string) error {
	path := "/proc/sys/" + name
	err := writeFile(path, value)
	if errors.Is(err, fs.ErrPermission) {
		err = asOwner(path, func() error { return writeFile(path, value) })
	}
	return err
}

// writeFile needs no O_CREATE or O_TRUNC: what is not there is an error.
func writeFile(path, value string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(value)
	return errors.Join(err, file.Close())
}

// asOwner runs fn as the user whom a file belongs to. Sysctls of an IPC
// namespace belong to the root of its user namespace, and the host's root is
// nobody there. Only the calling thread changes its user.
func asOwner(path string, fn func() error) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	become := func(uid uint32) error {
		const same = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
			return errno
		}
		return nil
	}
	if err := become(st.Uid); err != nil {
		return err
	}
	err := fn()
	return errors.Join(err, become(0)) // root may always: its real user is the same still
}
