package overlay

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// maxDepth bounds the walks: no path in a container is longer than 4096
// bytes, and each level holds a descriptor.
const maxDepth = 2048

// entry is one name in a layer's folder, found without following links, for a
// container may be writing there.
type entry struct {
	dirfd int
	name  string
	path  string // from the layer's root
	st    unix.Stat_t
}

func (e *entry) isDir() bool { return e.st.Mode&unix.S_IFMT == unix.S_IFDIR }

// procPath reaches the entry from outside of its folder's descriptor, for
// calls that know no descriptor.
func (e *entry) procPath() string {
	return "/proc/self/fd/" + strconv.Itoa(e.dirfd) + "/" + e.name
}

// errSkip makes walk leave a folder out.
var errSkip = errors.New("skip this folder")

// walk calls fn for all below the folder dirfd, in the order of names, a
// folder before what is in it. Names that vanish meanwhile are left out.
func walk(ctx context.Context, dirfd int, dir string, depth int, fn func(*entry) error) error {
	if depth > maxDepth {
		return errs.New(errs.Unsupported, "folders are nested more than %d deep", maxDepth)
	}
	names, err := namesIn(dirfd)
	if err != nil {
		return fmt.Errorf("read folder %s: %w", dir, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := &entry{dirfd: dirfd, name: name, path: join(dir, name)}
		err := unix.Fstatat(dirfd, name, &e.st, unix.AT_SYMLINK_NOFOLLOW)
		if isAny(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("stat %s: %w", e.path, err)
		}
		err = fn(e)
		if err == errSkip { //nolint:errorlint // returned bare
			continue
		}
		if err != nil {
			return err
		}
		if e.isDir() {
			if err := descend(e, func(fd int) error { return walk(ctx, fd, e.path, depth+1, fn) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func descend(e *entry, fn func(fd int) error) error {
	fd, err := unix.Openat(e.dirfd, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if isAny(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP) {
		return nil // gone or replaced meanwhile
	}
	if err != nil {
		return fmt.Errorf("open folder %s: %w", e.path, err)
	}
	defer unix.Close(fd)
	return fn(fd)
}

// namesIn lists the folder from its beginning and leaves dirfd open.
func namesIn(dirfd int) ([]string, error) {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// walkLayer walks the folder of a record; a View has none.
func (s *Store) walkLayer(ctx context.Context, rec *record, fn func(*entry) error) error {
	if rec.Kind == snapshot.KindView {
		return ctx.Err()
	}
	fd, err := unix.Openat(s.dirfd, rec.ID+"/fs", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open layer %s: %w", rec.ID, err)
	}
	defer unix.Close(fd)
	return walk(ctx, fd, ".", 0, fn)
}

// Usage counts an Active snapshot, and a Committed one the first time.
func (s *Store) Usage(ctx context.Context, key snapshot.Key) (snapshot.Usage, error) {
	rec, err := s.find(key)
	if err != nil {
		return snapshot.Usage{}, err
	}
	if rec.Usage != nil {
		return *rec.Usage, nil
	}
	usage := snapshot.Usage{Inodes: 1, Size: 4096} // the root
	if rec.Kind == snapshot.KindView {
		return snapshot.Usage{}, nil
	}
	seen := map[uint64]bool{}
	err = s.walkLayer(ctx, rec, func(e *entry) error {
		if e.st.Nlink > 1 && !e.isDir() {
			if seen[e.st.Ino] {
				return nil
			}
			seen[e.st.Ino] = true
		}
		usage.Inodes++
		usage.Size += e.st.Blocks * 512
		return nil
	})
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	if rec.Kind == snapshot.KindCommitted {
		s.remember(rec, usage)
	}
	return usage, nil
}

func (s *Store) remember(rec *record, usage snapshot.Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.byKey[rec.Key]; now != nil && now.ID == rec.ID {
		changed := *now
		changed.Usage = &usage
		s.put(&changed)
	}
}

// Diff writes the snapshot's own folder as a tar layer.
func (s *Store) Diff(ctx context.Context, key snapshot.Key, w io.Writer) error {
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	d := differ{w: tar.NewWriter(w), first: map[uint64]string{}, buf: make([]byte, 1<<18)}
	if rec.Opaque {
		err = d.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: opaqueMarker, Format: tar.FormatPAX, ModTime: time.Unix(0, 0)})
	}
	if err == nil {
		err = s.walkLayer(ctx, rec, func(e *entry) error { return d.entry(ctx, e) })
	}
	if err == nil {
		err = d.w.Close()
	}
	if err != nil {
		return fmt.Errorf("diff of snapshot %s: %w", key, err)
	}
	return nil
}

type differ struct {
	w     *tar.Writer
	first map[uint64]string // inode to the path it was first written under
	buf   []byte
}

func (d *differ) entry(ctx context.Context, e *entry) error {
	if isWhiteout(&e.st) {
		return d.marker(e, strings.TrimSuffix(e.path, e.name)+whiteoutPrefix+e.name)
	}
	if strings.HasPrefix(e.name, whiteoutPrefix) {
		return skipped(e) // cannot be said in a layer: it would delete something
	}
	h := &tar.Header{
		Name: e.path, Format: tar.FormatPAX, Mode: int64(e.st.Mode & 0o7777),
		Uid: int(e.st.Uid), Gid: int(e.st.Gid), ModTime: time.Unix(e.st.Mtim.Unix()),
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return d.file(ctx, e, h)
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		target, err := os.Readlink(e.procPath())
		if err != nil {
			return err
		}
		h.Linkname = target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if e.st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(e.st.Rdev)), int64(unix.Minor(e.st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil // a socket means nothing without its process
	}
	if linked, err := d.link(e, h); linked || err != nil {
		return err
	}
	if err := addXattrs(e.procPath(), h); err != nil {
		return err
	}
	if err := d.w.WriteHeader(h); err != nil {
		return err
	}
	if e.isDir() && isOpaque(e.procPath()) {
		return d.marker(e, e.path+"/"+opaqueMarker)
	}
	return nil
}

func skipped(e *entry) error {
	if e.isDir() {
		return errSkip
	}
	return nil
}

func (d *differ) marker(e *entry, name string) error {
	return d.w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX, ModTime: time.Unix(e.st.Mtim.Sec, 0),
	})
}

// link writes a further name of a file that is written already.
func (d *differ) link(e *entry, h *tar.Header) (bool, error) {
	if e.st.Nlink < 2 || e.isDir() {
		return false, nil
	}
	first, ok := d.first[e.st.Ino]
	if !ok {
		d.first[e.st.Ino] = e.path
		return false, nil
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	return true, d.w.WriteHeader(h)
}

func (d *differ) file(ctx context.Context, e *entry, h *tar.Header) error {
	h.Typeflag, h.Size = tar.TypeReg, e.st.Size
	if linked, err := d.link(e, h); linked || err != nil {
		return err
	}
	fd, err := unix.Openat(e.dirfd, e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", e.path, err)
	}
	f := os.NewFile(uintptr(fd), e.path)
	defer f.Close()
	if err := addXattrs(e.procPath(), h); err != nil {
		return err
	}
	if err := d.w.WriteHeader(h); err != nil {
		return err
	}
	for left := h.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := d.buf[:min(left, int64(len(d.buf)))]
		n, err := io.ReadFull(f, p)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			clear(p[n:]) // somebody cut it short: the header's promise is kept
		} else if err != nil {
			return fmt.Errorf("read %s: %w", e.path, err)
		}
		if _, err := d.w.Write(p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	return nil
}
