package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// tree is a container's file system, as seen from its root. Every lookup is
// held inside by the kernel, whatever links the container has put in the way.
type tree struct {
	root *os.File
	owners
}

// withTree opens the file system of a container: that which its processes see
// where it runs, and else its root with what volumes and binds would be on it.
func (s *Set) withTree(ctx context.Context, c *container, name string, fn func(t tree, name string) error) error {
	view := c.get()
	if alive(view.State.Status) {
		root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", view.State.Pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer root.Close()
			return fn(tree{root, s.owners(view)}, absolute(name))
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		} // it ends right now
	}
	return s.withRoot(ctx, c, func(dir string) error {
		dir, name := behindMount(view, dir, absolute(name))
		root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer root.Close()
		return fn(tree{root, s.owners(view)}, name)
	})
}

func (s *Set) owners(c *spec.Container) owners { return owners{s.idmap(c)} }

// behindMount leads a path on a volume or bind of a stopped container to the
// host's folder for it.
func behindMount(c *spec.Container, root, name string) (dir, rest string) {
	for _, m := range slices.Backward(c.Mounts) { // the innermost is last
		below, ok := strings.CutPrefix(path.Clean(name)+"/", m.Target+"/")
		info, err := os.Stat(m.Host)
		if ok && m.Host != "" && err == nil && info.IsDir() {
			return m.Host, trailing("/"+below, name)
		}
	}
	return root, name
}

// absolute makes a path begin at the root and climb no higher; a final slash
// or dot, which asks for what a link points to, stays.
func absolute(name string) string {
	return trailing(path.Clean("/"+name), name)
}

func trailing(clean, name string) string {
	clean = path.Clean(clean)
	if (strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.")) && clean != "/" {
		clean += "/"
	}
	return clean
}

// open opens a path below the root.
func (t tree) open(name string, flags uint64) (*os.File, error) {
	return openIn(t.root, name, flags, unix.RESOLVE_IN_ROOT)
}

// openIn is openat2, with the kinds of errors that callers tell apart.
func openIn(dir *os.File, name string, flags, resolve uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue // a rename went on at the same time
		}
		return nil, pathError(name, err)
	}
}

func pathError(name string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return errs.New(errs.NotFound, "no such file or folder in the container: %s", name)
	case errors.Is(err, unix.ENOTDIR):
		return errs.New(errs.Invalid, "not a folder in the container: %s", name)
	case errors.Is(err, unix.EROFS):
		return errs.New(errs.Denied, "read-only in the container: %s", name)
	case errors.Is(err, unix.ELOOP):
		return errs.New(errs.Invalid, "too many links in the container: %s", name)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// lstat opens a path without following a link at its end, unless it ends in a
// slash.
func (t tree) lstat(name string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	flags := uint64(unix.O_PATH | unix.O_NOFOLLOW)
	if strings.HasSuffix(name, "/") {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	f, err := t.open(name, flags)
	if err != nil {
		return nil, st, err
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, st, pathError(name, err)
	}
	return f, st, nil
}

// readlinkAt reads the link that f, opened with O_PATH, is.
func readlinkAt(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
