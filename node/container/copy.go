package container

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// StatPath describes a path in the container, a link itself and not its
// target unless path ends in a slash.
func (s *Set) StatPath(ctx context.Context, ref, name string) (stat spec.PathStat, err error) {
	c, err := s.find(ref)
	if err != nil {
		return stat, err
	}
	err = s.withTree(ctx, c, name, func(t tree, inside string) error {
		stat, err = t.stat(inside)
		return err
	})
	stat.Name = baseName(name)
	return stat, err
}

// CopyFrom writes path, a file or a whole folder, as a tar to w. The entries
// begin with the last part of path.
func (s *Set) CopyFrom(ctx context.Context, ref, name string, w io.Writer) (stat spec.PathStat, err error) {
	c, err := s.find(ref)
	if err != nil {
		return stat, err
	}
	err = s.withTree(ctx, c, name, func(t tree, inside string) error {
		if stat, err = t.stat(inside); err != nil {
			return err
		}
		s.publish(c.get(), "archive-path", "path", name)
		return t.archive(ctx, inside, baseName(name), w)
	})
	stat.Name = baseName(name)
	if err != nil {
		return stat, fmt.Errorf("copy %s from container %s: %w", name, c.name(), err)
	}
	return stat, nil
}

// CopyTo unpacks a tar into path, a folder in the container. Unless overwrite
// is set, a folder is never replaced by a file nor a file by a folder.
func (s *Set) CopyTo(ctx context.Context, ref, name string, archive io.Reader, overwrite bool) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	err = s.withTree(ctx, c, name, func(t tree, inside string) error {
		if err := writable(c.get(), name); err != nil {
			return err
		}
		dir, err := t.open(inside, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer dir.Close()
		return t.act(func() error { return t.unpack(ctx, inside, archive, overwrite) })
	})
	if err != nil {
		return fmt.Errorf("copy to %s in container %s: %w", name, c.name(), err)
	}
	s.publish(c.get(), "extract-to-dir", "path", name)
	return nil
}

// writable refuses what the container itself could not write.
func writable(c *spec.Container, name string) error {
	for _, m := range slices.Backward(c.Mounts) {
		if strings.HasPrefix(path.Clean("/"+name)+"/", m.Target+"/") {
			if m.ReadOnly {
				return errs.New(errs.Denied, "%s is mounted read-only", m.Target)
			}
			return nil
		}
	}
	if c.Config.Security.ReadOnlyRoot {
		return errs.New(errs.Denied, "the container's root is read-only")
	}
	return nil
}

// baseName is what a copy of the path is called.
func baseName(name string) string {
	if base := path.Base(path.Clean("/" + name)); base != "/" {
		return base
	}
	return "."
}

func (t tree) stat(name string) (spec.PathStat, error) {
	f, st, err := t.lstat(name)
	if err != nil {
		return spec.PathStat{}, err
	}
	defer f.Close()
	stat := spec.PathStat{
		Name:  baseName(name),
		Size:  st.Size,
		Mode:  uint32(fileMode(st.Mode)),
		MTime: time.Unix(st.Mtim.Unix()).UTC(),
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		stat.Target, err = readlinkAt(f)
	}
	return stat, err
}

// fileMode is the mode of the kernel as Go has it.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}
