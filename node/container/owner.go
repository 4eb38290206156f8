package container

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/bundle"
)

// owners tells the ids that a container sees from those of the host. The zero
// value is a container that sees them as they are.
type owners struct{ ids *bundle.Idmap }

// host is what the ids of an archive are here.
func (o owners) host(uid, gid int) (int, int, error) {
	if o.ids == nil {
		return uid, gid, nil
	}
	u, known := shift(o.ids.UIDs, uid, true)
	g, knownGroup := shift(o.ids.GIDs, gid, true)
	if !known || !knownGroup {
		return 0, 0, errs.New(errs.Invalid, "the container's user namespace has no owner %d:%d", uid, gid)
	}
	return u, g, nil
}

// nobody stands for ids that a user namespace does not have.
const nobody = 65534

// inside is what ids of the host are in the container.
func (o owners) inside(uid, gid int) (int, int) {
	if o.ids == nil {
		return uid, gid
	}
	u, known := shift(o.ids.UIDs, uid, false)
	if !known {
		u = nobody
	}
	g, known := shift(o.ids.GIDs, gid, false)
	if !known {
		g = nobody
	}
	return u, g
}

func shift(ids []specs.LinuxIDMapping, id int, toHost bool) (int, bool) {
	for _, m := range ids {
		from, to := int(m.ContainerID), int(m.HostID)
		if !toHost {
			from, to = to, from
		}
		if id >= from && id < from+int(m.Size) {
			return id - from + to, true
		}
	}
	return 0, false
}

// act runs fn as the container's root, as far as new files are concerned: on a
// file system with shifted owners the host's root owns nothing and can make
// nothing.
func (o owners) act(fn func() error) (err error) {
	if o.ids == nil {
		return fn()
	}
	root, group, err := o.host(0, 0)
	if err != nil {
		return err
	}
	var alone sync.WaitGroup
	alone.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its changed identity
		if err = become(root, group); err == nil {
			err = fn()
		}
	})
	alone.Wait()
	return err
}

// noSetuidFixup is SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
const noSetuidFixup = 1 << 2

// become changes who owns the files that this thread makes; its rights stay.
func become(uid, gid int) error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keep the rights of this thread: %w", err)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0); e != 0 {
		return e
	}
	return nil
}
