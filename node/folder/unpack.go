package folder

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // other records of aufs: nobody wants them
)

// Unpacking says how a layer is unpacked.
type Unpacking struct {
	Umask uint32 // of this process
	Limit int64  // on the bytes that it may unpack to
	Links Links  // where regular files are shared with other layers; nil: nowhere
}

// Unpacked is what a layer held.
type Unpacked struct {
	Size  int64 // of the files' bytes
	Usage Usage
	// Opaque: the layer's root hides everything below. overlayfs takes no mark
	// for that, so whoever keeps the layer remembers it.
	Opaque bool
	// Implied are folders that the tar has files in but says nothing of; they
	// look as they do in the parent, if it shows them. "." is the root.
	Implied []string
	// Whited are folders that have whiteouts in them.
	Whited []string
	// Linked are the files that came from links, Fresh those that links may
	// keep, folder by folder.
	Linked []Variant
	Fresh  []File
}

// Unpack unpacks layer into the empty folder root, an O_PATH descriptor, and
// reads layer to its end. Nobody else may write there meanwhile.
//
// Invalid: not a tar, cut short, or it names something outside of the layer,
// be it by .., a symbolic link or a hard link; or it is beyond the limits. An
// error of layer's Read comes back in the chain. On any failure the folder is
// left half filled, and only Linked is set.
func Unpack(ctx context.Context, root int, layer io.Reader, how Unpacking) (Unpacked, error) {
	u := &unpacker{
		root: root, umask: how.Umask, limit: how.Limit, links: how.Links, fresh: map[string]Variant{}, whited: map[string]bool{}, ctx: ctx, buf: make([]byte, bufChunks*chunk),
		dirs: map[string]*folder{".": {path: ".", fd: root}}, inodes: 1,
	}
	defer u.close()
	if err := u.run(layer); err != nil {
		return Unpacked{Linked: u.linked}, err
	}
	return Unpacked{
		Size: u.size, Usage: Usage{Size: u.disk + 4096*int64(len(u.dirs)), Inodes: u.inodes},
		Opaque: u.dirs["."].opaque, Implied: u.implied(),
		Whited: slices.Sorted(maps.Keys(u.whited)), Linked: u.linked, Fresh: u.freshFiles(),
	}, nil
}

// unpacker turns a tar into a tree under the descriptor root.
//
// It knows every folder it made, and opens files by name in a folder's
// descriptor, never by a longer path: so it costs one lookup a file, and no
// symbolic link is followed.
type unpacker struct {
	root  int
	umask uint32
	limit int64
	links Links
	ctx   context.Context //nolint:containedctx // lives as long as Unpack

	dirs   map[string]*folder // by path; "." is the root
	whited map[string]bool    // paths of those with whiteouts
	open   []*folder          // those with a descriptor, oldest first
	buf    []byte

	other  []byte             // what buf is compared with
	linked []Variant          // taken from links
	fresh  map[string]Variant // by path: what links may keep

	size   int64 // of the files' bytes
	disk   int64
	inodes int64
}

type folder struct {
	path   string
	fd     int         // -1 while closed
	header *tar.Header // nil while only implied
	opaque bool
	anew   bool // deleted, and made by this layer
}

const (
	maxOpen   = 32
	maxPath   = 4095 // a longer one could not be named in a container
	chunk     = 64 << 10
	bufChunks = 8
)

func (u *unpacker) close() {
	for _, f := range u.open {
		_ = unix.Close(f.fd)
	}
}

func (u *unpacker) implied() []string {
	var names []string
	for name, f := range u.dirs {
		if f.header == nil && !f.anew && !u.hidden(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// hidden says whether what lies below is hidden from the folder name.
func (u *unpacker) hidden(name string) bool {
	for name != "." {
		if name = path.Dir(name); u.dirs[name].opaque {
			return true
		}
	}
	return false
}

func (u *unpacker) freshFiles() []File {
	files := make([]File, 0, len(u.fresh))
	for name, v := range u.fresh {
		files = append(files, File{name, v})
	}
	slices.SortFunc(files, func(a, b File) int {
		return cmp.Or(cmp.Compare(path.Dir(a.Path), path.Dir(b.Path)), cmp.Compare(a.Path, b.Path))
	})
	return files
}

// run unpacks layer and reads it to its end.
func (u *unpacker) run(layer io.Reader) error {
	src := &source{ctx: u.ctx, r: layer, left: u.limit}
	in := bufio.NewReaderSize(src, chunk)
	archive := tar.NewReader(in)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return src.blame(err)
		}
		if err := u.entry(header, archive); err != nil {
			if cut, ok := errors.AsType[*bodyError](err); ok {
				err = src.blame(cut.err)
			}
			return fmt.Errorf("%s: %w", brief(header.Name), err)
		}
	}
	if _, err := io.CopyBuffer(io.Discard, onlyReader{in}, u.buf); err != nil {
		return src.blame(err)
	}
	return u.finish()
}

type onlyReader struct{ io.Reader }

// source bounds the stream and remembers whether it was the stream that
// failed, rather than what is in it.
type source struct {
	ctx  context.Context //nolint:containedctx // lives as long as run
	r    io.Reader
	left int64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if s.left -= int64(n); s.left < 0 {
		err = errs.New(errs.Invalid, "the layer unpacks to more bytes than is allowed")
	}
	if err != nil && err != io.EOF { //nolint:errorlint // readers return io.EOF itself
		s.err = err
	}
	return n, err
}

// blame says whose fault err is: the stream's, with its own kind, or the
// archive's, which is Invalid.
func (s *source) blame(err error) error {
	switch {
	case s.err != nil && !errors.Is(s.err, io.ErrUnexpectedEOF):
		return s.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Invalid, "the layer is cut short: %w", err)
	}
	return errs.New(errs.Invalid, "not a tar archive: %w", err)
}

// bodyError is an error from reading a file's bytes.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// inside cleans the name of an entry and rejects what is outside of the layer.
func inside(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "" || strings.HasPrefix(name, "/"):
		return "", errs.New(errs.Invalid, "path is not relative to the layer")
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return "", errs.New(errs.Invalid, "path climbs out of the layer")
	case len(clean) > maxPath:
		return "", errs.New(errs.Invalid, "path of %d bytes is longer than %d", len(clean), maxPath)
	case strings.IndexByte(clean, 0) >= 0:
		return "", errs.New(errs.Invalid, "path holds a zero byte")
	}
	if len(clean) > 255 {
		for part := range strings.SplitSeq(clean, "/") {
			if len(part) > 255 {
				return "", errs.New(errs.Invalid, "name of %d bytes is longer than 255", len(part))
			}
		}
	}
	return clean, nil
}

// brief shortens a hostile name for an error.
func brief(name string) string {
	if len(name) > 200 {
		return fmt.Sprintf("%.200q…", name)
	}
	return fmt.Sprintf("%q", name)
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= math.MaxUint32 || h.Gid >= math.MaxUint32 {
		return errs.New(errs.Invalid, "owner %d:%d", h.Uid, h.Gid)
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return errs.New(errs.Invalid, "the root of a layer is a folder")
		}
		u.dirs["."].header = h
		return nil
	}
	parent, base := path.Dir(name), path.Base(name)
	dir, err := u.folder(parent)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(dir, base, h)
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // old archives have it
		return u.file(dir, base, h, body)
	case tar.TypeLink:
		return u.hardLink(dir, base, h)
	case tar.TypeSymlink:
		return u.symlink(dir, base, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(dir, base, h)
	}
	return errs.New(errs.Invalid, "unknown type of entry %q", h.Typeflag)
}

// folder returns the folder at name with a descriptor, making it if need be.
func (u *unpacker) folder(name string) (*folder, error) {
	if f := u.dirs[name]; f != nil {
		return f, u.ensureOpen(f)
	}
	parent, err := u.folder(path.Dir(name))
	if err != nil {
		return nil, err
	}
	base := path.Base(name)
	err = unix.Mkdirat(parent.fd, base, 0o755)
	opaque := false
	if err == unix.EEXIST { //nolint:errorlint // a bare errno
		var st unix.Stat_t
		if err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		switch {
		case isWhiteout(&st):
			opaque = true
			if err = unix.Unlinkat(parent.fd, base, 0); err == nil {
				err = unix.Mkdirat(parent.fd, base, 0o755)
			}
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			return u.follow(parent, base)
		default:
			return nil, errs.New(errs.Invalid, "%s is not a folder", brief(name))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make folder %s: %w", brief(name), err)
	}
	u.inodes++
	f := &folder{path: join(parent.path, base), fd: -1, opaque: opaque, anew: opaque}
	u.dirs[f.path] = f
	return f, u.ensureOpen(f)
}

// follow goes through a symbolic link in the middle of an entry's path. Only
// one that leads to a folder of this very layer by a relative path is taken.
func (u *unpacker) follow(dir *folder, base string) (*folder, error) {
	var buf [maxPath + 1]byte
	n, err := unix.Readlinkat(dir.fd, base, buf[:])
	if err != nil {
		return nil, err
	}
	target := string(buf[:n])
	if !strings.HasPrefix(target, "/") {
		if f := u.dirs[path.Join(dir.path, target)]; f != nil {
			return f, u.ensureOpen(f)
		}
	}
	return nil, errs.New(errs.Invalid, "path goes through the symbolic link %s", brief(join(dir.path, base)+" -> "+target))
}

func (u *unpacker) ensureOpen(f *folder) error {
	if f.fd >= 0 {
		return nil
	}
	fd, err := openBeneath(u.root, f.path)
	if err != nil {
		return fmt.Errorf("open folder %s: %w", brief(f.path), err)
	}
	if len(u.open) == maxOpen {
		oldest := u.open[0]
		_ = unix.Close(oldest.fd)
		oldest.fd = -1
		u.open = append(u.open[:0], u.open[1:]...)
	}
	f.fd = fd
	u.open = append(u.open, f)
	return nil
}

// openBeneath opens the folder at path below the folder root, through no link.
func openBeneath(root int, path string) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// finish gives the folders their looks; before, each new file would have
// changed their times.
func (u *unpacker) finish() error {
	for name := range u.whited {
		if f := u.dirs[name]; f == nil || f.opaque || u.hidden(name) {
			if err := dropWhiteouts(u.root, name); err != nil {
				return err
			}
			delete(u.whited, name)
		}
	}
	for name, f := range u.dirs {
		if err := u.dress(name, f); err != nil {
			return fmt.Errorf("folder %s: %w", brief(name), err)
		}
	}
	return nil
}

func (u *unpacker) dress(name string, f *folder) error {
	if f.opaque && name != "." {
		if err := u.setXattr(u.root, name, opaqueXattr, "y"); err != nil {
			return err
		}
	}
	h := f.header
	if h == nil {
		h = &tar.Header{Mode: 0o755, ModTime: time.Unix(0, 0)}
	}
	if h.Uid|h.Gid != 0 {
		if err := unix.Fchownat(u.root, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if mode := uint32(h.Mode) & 0o7777; mode != 0o755 || u.umask&0o755 != 0 {
		if err := unix.Fchmodat(u.root, name, mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := u.setXattrs(u.root, name, h); err != nil {
		return err
	}
	return u.setTimes(u.root, name, h)
}

// Umask reads the umask of this process from the kernel, for umask(2) can only ask by changing it.
func Umask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Umask:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return uint32(mask), err
		}
	}
	return 0o777, nil // unknown: then every mode is set explicitly
}
