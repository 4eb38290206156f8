package fakesnapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tree is a file tree by path; "." is the root. Two paths with one *file are
// hard links. Files do not change: a changed tree is a changed map.
type tree map[string]*file

type file struct {
	kind         byte // as tar's type flags
	mode         int64
	uid, gid     int
	mtime        time.Time
	body         []byte
	target       string
	major, minor int64
	xattrs       map[string]string
}

func emptyTree() tree { return tree{".": {kind: tar.TypeDir, mode: 0o755}} }

func (f *file) equal(g *file) bool {
	return f.kind == g.kind && f.mode == g.mode && f.uid == g.uid && f.gid == g.gid && f.mtime.Equal(g.mtime) &&
		bytes.Equal(f.body, g.body) && f.target == g.target && f.major == g.major && f.minor == g.minor && maps.Equal(f.xattrs, g.xattrs)
}

// changed lists the paths that differ, with the folders they are in, as a layer
// has them: a folder before what is in it, and that before what is beside the
// folder. Of what was deleted only the topmost is listed, of a file that is new
// or changed all names.
func changed(base, now tree) []string {
	set := map[string]bool{}
	mark := func(name string) {
		for ; name != "." && !set[name]; name = path.Dir(name) {
			set[name] = true
		}
	}
	for name, f := range now {
		if old := base[name]; name != "." && (old == nil || !old.equal(f)) {
			mark(name)
		}
	}
	for name := range base {
		parent := now[path.Dir(name)]
		if now[name] == nil && parent != nil && parent.kind == tar.TypeDir {
			mark(name)
		}
	}
	touched := map[*file]bool{}
	for name := range set {
		if f := now[name]; f != nil && f.kind != tar.TypeDir {
			touched[f] = true
		}
	}
	for name, f := range now {
		if touched[f] {
			mark(name)
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b string) int {
		return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
	})
}

// paxXattr is how a tar keeps xattrs.
const paxXattr = "SCHILY.xattr."

// writeLayer writes the named paths as a layer.
func (t tree) writeLayer(w io.Writer, names []string) error {
	out := tar.NewWriter(w)
	first := map[*file]string{}
	for _, name := range names {
		f := t[name]
		if f == nil {
			h := &tar.Header{Name: path.Join(path.Dir(name), ".wh."+path.Base(name)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
			if err := out.WriteHeader(h); err != nil {
				return err
			}
			continue
		}
		h := f.header(name)
		if other := first[f]; other != "" {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, other, 0, nil
		} else if f.kind != tar.TypeDir {
			first[f] = name
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := out.Write(f.body); err != nil {
				return err
			}
		}
	}
	return out.Close()
}

func (f *file) header(name string) *tar.Header {
	h := &tar.Header{
		Name: name, Typeflag: f.kind, Mode: f.mode, Uid: f.uid, Gid: f.gid, ModTime: f.mtime, Size: int64(len(f.body)),
		Linkname: f.target, Devmajor: f.major, Devminor: f.minor, Format: tar.FormatPAX,
	}
	if f.kind == tar.TypeDir {
		h.Name += "/"
	}
	for xattr, value := range f.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+xattr] = value
	}
	return h
}

// write makes the tree in the folder target.
func (t tree) write(target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(t))
	first := map[*file]string{}
	for _, name := range names {
		f, at := t[name], filepath.Join(target, name)
		if other := first[f]; other != "" {
			if err := os.Link(other, at); err != nil {
				return err
			}
			continue
		}
		if f.kind != tar.TypeDir {
			first[f] = at
		}
		if err := f.create(at); err != nil {
			return err
		}
	}
	for _, name := range slices.Backward(names) { // after all is in the folders
		if err := t[name].dress(filepath.Join(target, name)); err != nil {
			return err
		}
	}
	return nil
}

func (f *file) create(at string) error {
	switch f.kind {
	case tar.TypeDir:
		err := os.Mkdir(at, 0o700)
		if errors.Is(err, fs.ErrExist) {
			return nil // the root
		}
		return err
	case tar.TypeSymlink:
		return os.Symlink(f.target, at)
	case tar.TypeChar:
		return allowed(unix.Mknod(at, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(f.major), uint32(f.minor)))))
	case tar.TypeBlock:
		return allowed(unix.Mknod(at, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(f.major), uint32(f.minor)))))
	case tar.TypeFifo:
		return unix.Mkfifo(at, 0o600)
	}
	out, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := writeSparse(out, f.body); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

// writeSparse leaves holes where the body is zeros.
func writeSparse(out *os.File, body []byte) error {
	const chunk = 64 << 10
	for at := 0; at < len(body); at += chunk {
		part := body[at:min(at+chunk, len(body))]
		if len(bytes.TrimLeft(part, "\x00")) == 0 && len(body) > chunk {
			continue
		}
		if _, err := out.WriteAt(part, int64(at)); err != nil {
			return err
		}
	}
	return out.Truncate(int64(len(body)))
}

func (f *file) dress(at string) error {
	if err := allowed(unix.Lchown(at, f.uid, f.gid)); err != nil {
		return err
	}
	for name, value := range f.xattrs {
		if err := allowed(unix.Lsetxattr(at, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	if f.kind != tar.TypeSymlink {
		if err := allowed(unix.Chmod(at, uint32(f.mode))); err != nil {
			return err
		}
	}
	times := []unix.Timespec{unix.NsecToTimespec(f.mtime.UnixNano()), unix.NsecToTimespec(f.mtime.UnixNano())}
	if f.mtime.IsZero() {
		times = []unix.Timespec{{}, {}}
	}
	return allowed(unix.UtimesNanoAt(unix.AT_FDCWD, at, times, unix.AT_SYMLINK_NOFOLLOW))
}

// allowed passes over what this process or file system may not do.
func allowed(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// readTree reads what is in the folder target.
func readTree(target string) (tree, error) {
	t, byInode := tree{}, map[uint64]*file{}
	err := filepath.WalkDir(target, func(at string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(target, at)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return allowed(err)
		}
		if other := byInode[st.Ino]; other != nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t[name] = other
			return nil
		}
		f, err := readFile(at, &st)
		if f != nil {
			t[name], byInode[st.Ino] = f, f
		}
		return err
	})
	return t, err
}

func readFile(at string, st *unix.Stat_t) (f *file, err error) {
	f = &file{mode: int64(st.Mode & 0o7777), uid: int(st.Uid), gid: int(st.Gid), mtime: time.Unix(st.Mtim.Unix()).UTC()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.kind = tar.TypeReg
		f.body, err = os.ReadFile(at)
	case unix.S_IFDIR:
		f.kind = tar.TypeDir
	case unix.S_IFLNK:
		f.kind = tar.TypeSymlink
		f.target, err = os.Readlink(at)
	case unix.S_IFCHR:
		f.kind, f.major, f.minor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		f.kind, f.major, f.minor = tar.TypeBlock, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		f.kind = tar.TypeFifo
	default:
		return nil, nil // a socket
	}
	if err != nil {
		return nil, err
	}
	return f, f.readXattrs(at)
}

func (f *file) readXattrs(at string) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(at, buf)
	if err != nil {
		return allowed(err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(at, name, value)
		if err != nil {
			return allowed(err)
		}
		if f.xattrs == nil {
			f.xattrs = map[string]string{}
		}
		f.xattrs[name] = string(value[:n])
	}
	return nil
}
