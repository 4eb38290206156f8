package bundle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// A root is a container's root file system. Whoever made the image, or runs
// in the container, chose its links: every path is resolved by the kernel as
// if the root were /, so that none leads out.
type root struct{ dir *os.File }

func openRoot(path string) (root, error) {
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return root{}, fmt.Errorf("root file system: %w", err)
	}
	return root{dir}, nil
}

func (r root) Close() error { return r.dir.Close() }

// open opens a path of the container.
func (r root) open(name string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // something was renamed meanwhile
			continue
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// maxAccounts bounds what is read of /etc/passwd and /etc/group.
const maxAccounts = 16 << 20

// accounts reads /etc/passwd or /etc/group; nil where there is none. A pipe
// or a device there is as good as nothing.
func (r root) accounts(name string) ([]byte, error) {
	f, err := r.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxAccounts))
}

// mkdirAll makes a folder of the container and those above it.
func (r root) mkdirAll(name string) error {
	dir, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		return dir.Close()
	}
	if !errors.Is(err, os.ErrNotExist) || name == "/" {
		return err
	}
	if err := r.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	parent, err := r.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), path.Base(name), 0o755)
	if errors.Is(err, unix.EEXIST) { // made meanwhile, or a link to nowhere
		dir, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			return dir.Close()
		}
		return err
	}
	return err
}

// workDir makes the working directory where it is missing, unless it lies on
// a mount: what is beneath a mount would never be seen, and what is on it is
// the runtime's to make. In a user namespace all is the runtime's.
func workDir(r root, s *specs.Spec, idmap *Idmap) error {
	cwd := s.Process.Cwd
	under := func(m specs.Mount) bool {
		return cwd == m.Destination || strings.HasPrefix(cwd, strings.TrimSuffix(m.Destination, "/")+"/")
	}
	if idmap != nil || slices.ContainsFunc(s.Mounts, under) {
		return nil
	}
	if len(cwd) >= unix.PathMax {
		return errs.New(errs.Invalid, "working directory: its path is longer than %d bytes", unix.PathMax-1)
	}
	switch err := r.mkdirAll(cwd); {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return errs.New(errs.Invalid, "working directory %s: %w", cwd, err)
	case err != nil:
		return fmt.Errorf("make working directory: %w", err)
	}
	return nil
}
