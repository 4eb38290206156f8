package lcfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/folder"
)

// What overlayfs keeps in an upper folder where it may leave parts of a change
// in the layers below.
const (
	metacopyXattr = "trusted.overlay.metacopy"
	redirectXattr = "trusted.overlay.redirect"
)

// upperReader reads the folder of an Active snapshot or an unsettled layer as
// the tree of what it changes, complete in itself: files whose bodies are
// still in the layers below, and folders that were moved with what is in
// them, come out whole.
type upperReader struct {
	store   *Store
	rec     *record
	made    *content
	links   map[uint64]*tree.Node
	folders map[string]*tree.Node
	// lower says where in the tree below a folder has its part; the empty
	// string where it has none.
	lower map[string]string
	moved []moved
	below *content // the tree below, once it was needed
}

// moved is a folder that was renamed: it shows what is at from in the tree
// below.
type moved struct {
	parent     *tree.Node
	name, from string
}

func (s *Store) readUpper(ctx context.Context, rec *record) (*content, error) {
	dirfd, err := openFolder(s.fs(rec.ID))
	if err != nil {
		return nil, err
	}
	defer unix.Close(dirfd)
	var st unix.Stat_t
	if err := unix.Fstat(dirfd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	root := nodeOf(&st)
	u := &upperReader{
		store: s, rec: rec,
		made:    &content{root: root, bodies: map[*tree.Node]bodyFile{}},
		links:   map[uint64]*tree.Node{},
		folders: map[string]*tree.Node{".": root},
		lower:   map[string]string{".": "."},
	}
	if root.Xattrs, err = rootXattrs(s.layers, rec.ID); err != nil {
		return nil, err
	}
	if err := folder.Walk(ctx, dirfd, func(e *folder.Entry) error { return u.entry(ctx, e) }); err != nil {
		return nil, fmt.Errorf("read layer %s: %w", rec.ID, err)
	}
	return u.made, u.unfold(ctx)
}

// rootXattrs reads the xattrs of a layer's own folder.
func rootXattrs(layers, id string) ([]tree.Xattr, error) {
	dirfd, err := openFolder(layers + "/" + id)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dirfd)
	return xattrs(&folder.Entry{Dirfd: dirfd, Name: "fs", Path: "."})
}

func xattrs(e *folder.Entry) ([]tree.Xattr, error) {
	found, err := e.Xattrs()
	if err != nil || len(found) == 0 {
		return nil, err
	}
	all := make([]tree.Xattr, len(found))
	for i, x := range found {
		all[i] = tree.Xattr(x)
	}
	return tree.SortedXattrs(all), nil
}

func nodeOf(st *unix.Stat_t) *tree.Node {
	n := &tree.Node{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = st.Rdev
	}
	if n.IsWhiteout() {
		return &tree.Node{Mode: unix.S_IFCHR} // when something was deleted is nobody's business
	}
	return n
}

func (u *upperReader) entry(ctx context.Context, e *folder.Entry) error {
	parent := u.folders[path.Dir(e.Path)]
	if parent == nil {
		return folder.ErrSkip // its folder became something else meanwhile
	}
	if e.Stat.Nlink > 1 && !e.IsDir() {
		if n := u.links[e.Stat.Ino]; n != nil {
			parent.Set(e.Name, n)
			return nil
		}
	}
	n := nodeOf(&e.Stat)
	var err error
	switch n.Type() {
	case unix.S_IFLNK:
		n.Target, err = e.Target()
	case unix.S_IFDIR:
		err = u.dir(e, parent, n)
	case unix.S_IFREG:
		err = u.file(ctx, e, n)
	}
	if err == nil && !e.IsWhiteout() {
		n.Xattrs, err = xattrs(e)
	}
	if errs.IsAny(err, unix.ENOENT) {
		return nil // gone meanwhile
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	parent.Set(e.Name, n)
	if e.Stat.Nlink > 1 && !e.IsDir() {
		u.links[e.Stat.Ino] = n
	}
	return nil
}

func (u *upperReader) dir(e *folder.Entry, parent, n *tree.Node) error {
	u.folders[e.Path] = n
	n.Opaque = e.IsOpaque()
	redirect, found := "", false
	if u.store.partial {
		var err error
		if redirect, found, err = overlayXattr(e, redirectXattr); err != nil {
			return err
		}
	}
	switch {
	case found:
		from := u.lowerPath(e, redirect)
		u.lower[e.Path] = from
		u.moved = append(u.moved, moved{parent, e.Name, from})
	case !n.Opaque && u.lower[path.Dir(e.Path)] != "":
		u.lower[e.Path] = path.Join(u.lower[path.Dir(e.Path)], e.Name)
	}
	return nil
}

// lowerPath is where in the tree below e has its part: by its redirect, or by
// its own name.
func (u *upperReader) lowerPath(e *folder.Entry, redirect string) string {
	switch dir := u.lower[path.Dir(e.Path)]; {
	case strings.HasPrefix(redirect, "/"):
		return path.Clean(redirect[1:])
	case dir == "":
		return ""
	case redirect != "":
		return path.Join(dir, redirect)
	default:
		return path.Join(dir, e.Name)
	}
}

// file notes where the body is.
func (u *upperReader) file(ctx context.Context, e *folder.Entry, n *tree.Node) error {
	var found bool
	if u.store.partial {
		var err error
		if _, found, err = overlayXattr(e, metacopyXattr); err != nil {
			return err
		}
	}
	if !found {
		u.made.bodies[n] = bodyFile{u.rec.ID, e.Path, e.Stat.Ino}
		return nil
	}
	redirect, _, err := overlayXattr(e, redirectXattr)
	if err != nil {
		return err
	}
	below, err := u.treeBelow(ctx)
	if err != nil {
		return err
	}
	from := tree.Find(below.root, u.lowerPath(e, redirect))
	if from == nil || !from.IsRegular() {
		return errs.New(errs.Internal, "its body is not in the layers below")
	}
	n.Size, n.Body, n.Object = from.Size, from.Body, from.Object
	if body, ok := below.bodies[from]; ok {
		u.made.bodies[n] = body
	}
	return nil
}

func (u *upperReader) treeBelow(ctx context.Context) (*content, error) {
	if u.below != nil {
		return u.below, nil
	}
	below, err := u.store.chainTree(ctx, u.rec.Parent)
	if err != nil {
		return nil, err
	}
	if below.root == nil {
		below.root = tree.NewFolder()
	}
	u.below = below
	return below, nil
}

// unfold makes moved folders complete, the innermost first.
func (u *upperReader) unfold(ctx context.Context) error {
	for _, m := range slices.Backward(u.moved) {
		below, err := u.treeBelow(ctx)
		if err != nil {
			return err
		}
		var from *tree.Node
		if m.from != "" {
			from = tree.Find(below.root, m.from)
		}
		n := m.parent.Lookup(m.name)
		if n == nil {
			continue
		}
		whole := *tree.Merge(from, n)
		whole.Mode, whole.UID, whole.GID, whole.Sec, whole.Nsec, whole.Xattrs = n.Mode, n.UID, n.GID, n.Sec, n.Nsec, n.Xattrs
		whole.Opaque = true
		m.parent.Set(m.name, &whole)
		maps.Copy(u.made.bodies, below.bodies)
	}
	return nil
}

// overlayXattr reads an xattr of overlayfs's own.
func overlayXattr(e *folder.Entry, name string) (value string, found bool, err error) {
	file := fmt.Sprintf("/proc/self/fd/%d/%s", e.Dirfd, e.Name)
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Lgetxattr(file, name, buf)
		switch {
		case err == nil:
			return string(buf[:n]), true, nil
		case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP):
			return "", false, nil
		case !errors.Is(err, unix.ERANGE) || size > 1<<16:
			return "", false, fmt.Errorf("xattr %s: %w", name, err)
		}
	}
}

// openBody opens a file in an upper, which a container may be writing to.
func (s *Store) openBody(body bodyFile) (*os.File, error) {
	if body.path == "" {
		return nil, errs.New(errs.Internal, "a file's body is nowhere")
	}
	dirfd, err := openFolder(s.fs(body.id))
	if err != nil {
		return nil, err
	}
	defer unix.Close(dirfd)
	fd, err := openBodyAt(dirfd, body.path, unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), body.path), nil
}

func openBodyAt(dirfd int, path string, flags uint64) (int, error) {
	fd, err := unix.Openat2(dirfd, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
