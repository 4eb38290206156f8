// Package stats reads what containers use out of their cgroups, version 1
// and 2, and out of /proc, without running anything.
//
// A cgroup is named by its path under the root of each hierarchy, such as
// /berth/<id>: the one that stands in the container's OCI spec. What a
// kernel or a hierarchy does not tell is left zero; a cgroup that is gone is
// errs.NotFound.
package stats

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// Reader reads the cgroups of one machine. It holds no files open and may be
// used by many at once.
type Reader struct {
	root    string // /sys/fs/cgroup
	proc    string // /proc
	unified bool   // cgroup version 2
	memory  uint64 // of the machine, in bytes
	cpus    int
	pages   []string // sizes of huge pages
	passes
}

// Open finds the machine's cgroup hierarchies.
func Open() (*Reader, error) { return OpenAt("/sys/fs/cgroup", "/proc") }

// OpenAt is Open of what is mounted elsewhere than usual, or looks like it.
func OpenAt(root, proc string) (*Reader, error) {
	r := &Reader{root: root, proc: proc, cpus: runtime.NumCPU(), pages: hugePages()}
	var st unix.Stat_t
	if err := unix.Stat(r.root, &st); err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	// Only the root of version 2 has it: each tree of version 1 is below.
	r.unified = unix.Stat(filepath.Join(r.root, "cgroup.controllers"), &st) == nil
	r.prepare(r.root, r.unified)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("size of memory: %w", err)
	}
	r.memory = info.Totalram * uint64(info.Unit)
	return r, nil
}

// Read gives what the cgroup uses; network counters are those that pid, one
// of its processes, sees (none where pid is 0). ID and Name are the
// caller's to set.
func (r *Reader) Read(cgroup string, pid int) (spec.Stats, error) {
	s := spec.Stats{Time: time.Now(), Network: []spec.InterfaceStats{}}
	s.CPU.Online = r.cpus
	f := newFiles()
	if r.unified {
		r.readV2(&s, f, cgroup)
	} else {
		r.readV1(&s, f, cgroup)
	}
	if s.Memory.Limit == 0 || s.Memory.Limit > r.memory {
		s.Memory.Limit = r.memory
	}
	if !f.found {
		return spec.Stats{}, errs.New(errs.NotFound, "there is no cgroup %s", cgroup)
	}
	if pid > 0 {
		s.Network = parseNetDev(f.read(filepath.Join(r.proc, strconv.Itoa(pid), "net/dev")))
	}
	if f.err != nil {
		return spec.Stats{}, fmt.Errorf("read cgroup %s: %w", cgroup, f.err)
	}
	return s, nil
}

// OOMKills counts the processes of the cgroup that were killed for want of
// memory.
func (r *Reader) OOMKills(cgroup string) (uint64, error) {
	f := newFiles()
	file := filepath.Join(r.root, "memory", cgroup, "memory.oom_control")
	if r.unified {
		file = filepath.Join(r.root, cgroup, "memory.events")
	}
	kills := field(f.read(file), "oom_kill")
	if f.err == nil && !f.found {
		return 0, errs.New(errs.NotFound, "there is no cgroup %s", cgroup)
	}
	return kills, f.err
}

// Pids lists the processes in the cgroup and in those below it.
func (r *Reader) Pids(cgroup string) ([]int, error) {
	dir := filepath.Join(r.root, "pids", cgroup)
	if r.unified {
		dir = filepath.Join(r.root, cgroup)
	}
	var pids []int
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil || !e.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil && !absent(err) {
			return err
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "there is no cgroup %s", cgroup)
	}
	return pids, err
}

// files reads small files one after the other, into one buffer. Those that
// are not there read as nothing.
type files struct {
	buf   []byte
	found bool // any of them
	err   error
	dir   int // that in was last asked for
}

func newFiles() *files { return &files{buf: make([]byte, 16<<10)} }

// read gives a file's text, good until the next read.
func (f *files) read(path string) []byte { return f.readAt(unix.AT_FDCWD, path) }

// readAt is read for a path below a folder.
func (f *files) readAt(dir int, path string) []byte {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if !absent(err) {
			f.err = errors.Join(f.err, &os.PathError{Op: "open", Path: path, Err: err})
		}
		return nil
	}
	defer unix.Close(fd)
	total := 0
	for {
		n, err := unix.Read(fd, f.buf[total:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case absent(err):
			return nil
		case err != nil:
			f.err = errors.Join(f.err, &os.PathError{Op: "read", Path: path, Err: err})
			return nil
		case n <= 0:
			f.found = true
			return f.buf[:total]
		}
		// The kernel gives these files whole, or as much as fits into a page.
		if total += n; n < 2048 {
			f.found = true
			return f.buf[:total]
		}
		if total == len(f.buf) {
			f.buf = append(f.buf, make([]byte, len(f.buf))...)
		}
	}
}

// absent: the file, the cgroup or the process is not there, or the kernel
// does not tell.
func absent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL)
}
