package layer

import (
	"archive/tar"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // other records of aufs: nobody wants them

	maxPath = 4095 // a longer one could not be named in a container
	maxName = 255
)

// entry is what an archive says of one file. Its numbers may be anything.
type entry struct {
	kind         byte // as tar.TypeReg
	name, link   string
	mode         int64
	uid, gid     int64
	size         int64
	sec          int64
	nsec         uint32
	major, minor int64
	xattrs       []tree.Xattr // without the names' prefix in PAX records
}

func (e *entry) isFile() bool {
	switch e.kind {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // old archives have it
		return true
	}
	return false
}

// builder makes the tree of what a layer changes out of its entries. The
// later entry of a path wins; whiteouts hide what is below the layer, not
// what is in it, whichever comes first.
type builder struct {
	root  *tree.Node
	names *tree.Builder
	// dirs are the folders that paths of entries led to. It is forgotten when
	// a folder goes away.
	dirs map[string]*folder
	// left is how much memory the tree may still take, or nearly.
	left int64
	// hidden are files and folders that another entry took the place of.
	hidden []*tree.Node
}

const (
	// maxTree bounds the memory of a tree: a few kilobytes of compressed layer
	// can name as many files as there is memory for.
	maxTree = 1 << 30
	// perNode is what a file takes beside its name and values.
	perNode = 400
)

// spend takes n bytes and a file off what the tree may take.
func (b *builder) spend(n int) error {
	if b.left -= int64(n) + perNode; b.left < 0 {
		return errs.New(errs.Invalid, "the layer has more files than is allowed")
	}
	return nil
}

type folder struct {
	path string // the real one: no part of it is a link
	node *tree.Node
}

func newBuilder() *builder {
	b := &builder{root: implied(), names: tree.NewBuilder(), left: maxTree}
	b.forget()
	return b
}

func implied() *tree.Node {
	n := tree.NewFolder()
	n.Implied = true
	return n
}

func (b *builder) forget() { b.dirs = map[string]*folder{".": {".", b.root}} }

// add puts an entry into the tree. Of a file it returns the node, which the
// caller gives its body.
func (b *builder) add(e *entry) (*tree.Node, error) {
	name, err := inside(e.name)
	if err != nil {
		return nil, err
	}
	if e.uid < 0 || e.gid < 0 || e.uid >= math.MaxUint32 || e.gid >= math.MaxUint32 {
		return nil, errs.New(errs.Invalid, "owner %d:%d", e.uid, e.gid)
	}
	weight := len(name) + len(e.link)
	for _, x := range e.xattrs {
		weight += len(x.Name) + len(x.Value)
	}
	if err := b.spend(weight); err != nil {
		return nil, err
	}
	if name == "." {
		if e.kind != tar.TypeDir {
			return nil, errs.New(errs.Invalid, "the root of a layer is a folder")
		}
		return nil, dressFolder(b.root, e)
	}
	at, base := ".", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		at, base = name[:i], name[i+1:]
	}
	dir, err := b.folder(at)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return nil, b.whiteout(dir, base)
	}
	if e.isFile() {
		n, err := newNode(unix.S_IFREG, e)
		if err == nil {
			b.set(dir, base, n)
		}
		return n, err
	}
	switch e.kind {
	case tar.TypeDir:
		return nil, b.directory(dir, base, e)
	case tar.TypeLink:
		return nil, b.hardLink(dir, base, e)
	case tar.TypeSymlink:
		return nil, b.symlink(dir, base, e)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return nil, b.device(dir, base, e)
	}
	return nil, errs.New(errs.Invalid, "unknown type of entry %q", e.kind)
}

// inside cleans the name of an entry and rejects what is outside of the layer.
func inside(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "" || name[0] == '/':
		return "", errs.New(errs.Invalid, "path is not relative to the layer")
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return "", errs.New(errs.Invalid, "path climbs out of the layer")
	case len(clean) > maxPath:
		return "", errs.New(errs.Invalid, "path of %d bytes is longer than %d", len(clean), maxPath)
	case strings.IndexByte(clean, 0) >= 0:
		return "", errs.New(errs.Invalid, "path holds a zero byte")
	}
	if len(clean) > maxName {
		for part := range strings.SplitSeq(clean, "/") {
			if len(part) > maxName {
				return "", errs.New(errs.Invalid, "name of %d bytes is longer than %d", len(part), maxName)
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

// folder returns the folder at name, making it if need be.
func (b *builder) folder(name string) (*folder, error) {
	if f := b.dirs[name]; f != nil {
		return f, nil
	}
	at, base := ".", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		at, base = name[:i], name[i+1:]
	}
	parent, err := b.folder(at)
	if err == nil {
		err = b.spend(0)
	}
	if err != nil {
		return nil, err
	}
	f := &folder{path: join(parent.path, base)}
	switch n := b.names.Lookup(parent.node, base); {
	case n == nil:
		f.node = implied()
		b.names.Set(parent.node, base, f.node)
	case n.IsDir():
		f.node = n
	case n.IsWhiteout(): // deleted and made anew: nothing below shows
		f.node = implied()
		f.node.Opaque, f.node.Implied = true, false // made anew
		b.names.Set(parent.node, base, f.node)
	case n.Type() == unix.S_IFLNK:
		if f = b.follow(parent, n.Target); f == nil {
			return nil, errs.New(errs.Invalid, "path goes through the symbolic link %s", brief(name+" -> "+n.Target))
		}
	default:
		return nil, errs.New(errs.Invalid, "%s is not a folder", brief(name))
	}
	b.dirs[name] = f
	return f, nil
}

// follow goes through a symbolic link in the middle of an entry's path. Only
// one that leads to a folder of this very layer by a relative path, on which
// is no other link, is taken.
func (b *builder) follow(dir *folder, target string) *folder {
	if strings.HasPrefix(target, "/") {
		return nil
	}
	at := path.Join(dir.path, target)
	n := b.find(at)
	if n == nil || !n.IsDir() {
		return nil
	}
	return &folder{at, n}
}

// find returns the node at a clean path without following links.
func (b *builder) find(name string) *tree.Node {
	n := b.root
	if name == "." {
		return n
	}
	for part := range strings.SplitSeq(name, "/") {
		if n = b.names.Lookup(n, part); n == nil {
			return nil
		}
	}
	return n
}

// set puts n in place of whatever is called base.
func (b *builder) set(dir *folder, base string, n *tree.Node) {
	old := b.names.Lookup(dir.node, base)
	if old != nil && (old.IsRegular() || old.IsDir()) {
		b.hidden = append(b.hidden, old)
	}
	b.leave(old)
	b.names.Set(dir.node, base, n)
}

// hiddenBodies lists the bodies that were stored and that the tree does not
// name, in their order.
func (b *builder) hiddenBodies() []tree.Digest {
	if len(b.hidden) == 0 {
		return nil
	}
	all := tree.NewFolder()
	for i, n := range b.hidden {
		all.Set(strconv.Itoa(i), n)
	}
	named := tree.Objects(b.root)
	return slices.DeleteFunc(tree.Objects(all), func(d tree.Digest) bool {
		_, shown := slices.BinarySearchFunc(named, d, tree.Digest.Compare)
		return shown
	})
}

// leave makes sure that nothing leads to a folder, or through a link, that
// goes away.
func (b *builder) leave(old *tree.Node) {
	if old != nil && (old.IsDir() || old.Type() == unix.S_IFLNK) {
		b.forget()
	}
}

func (b *builder) directory(dir *folder, base string, e *entry) error {
	old := b.names.Lookup(dir.node, base)
	if old != nil && old.IsDir() {
		return dressFolder(old, e)
	}
	n := implied()
	n.Opaque = old != nil && old.IsWhiteout()
	if err := dressFolder(n, e); err != nil {
		return err
	}
	b.set(dir, base, n)
	return nil
}

// whiteout hides what is below. An entry of the same layer is not below: it
// stays, whichever came first.
func (b *builder) whiteout(dir *folder, base string) error {
	if base == opaqueMarker {
		dir.node.Opaque = true
		return nil
	}
	if strings.HasPrefix(base, aufsPrefix) {
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return errs.New(errs.Invalid, "whiteout of nothing")
	}
	b.hide(dir, hidden)
	return nil
}

func (b *builder) hide(dir *folder, name string) {
	switch n := b.names.Lookup(dir.node, name); {
	case n == nil:
		b.names.Set(dir.node, name, tree.NewWhiteout())
	case n.IsDir():
		n.Opaque, n.Implied = true, false
	}
}

func (b *builder) hardLink(dir *folder, base string, e *entry) error {
	target, err := inside(e.link)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", brief(e.link), err)
	}
	own := join(dir.path, base)
	if target == own {
		return nil
	}
	n := b.find(target)
	if n == nil || n.IsDir() || n.IsWhiteout() || strings.HasPrefix(target, own+"/") {
		return errs.New(errs.Invalid, "hard link to %s, which is no file of this layer", brief(e.link))
	}
	b.set(dir, base, n)
	return nil
}

func (b *builder) symlink(dir *folder, base string, e *entry) error {
	if e.link == "" || len(e.link) > maxPath || strings.IndexByte(e.link, 0) >= 0 {
		return errs.New(errs.Invalid, "symbolic link to a path of %d bytes", len(e.link))
	}
	n, err := newNode(unix.S_IFLNK, e)
	if err != nil {
		return err
	}
	n.Mode = unix.S_IFLNK | 0o777
	n.Target = e.link
	b.set(dir, base, n)
	return nil
}

// device makes a device or a fifo. Device 0:0 is how overlayfs spells a
// whiteout, so in a layer it is one.
func (b *builder) device(dir *folder, base string, e *entry) error {
	kind := uint32(unix.S_IFIFO)
	switch e.kind {
	case tar.TypeChar:
		kind = unix.S_IFCHR
	case tar.TypeBlock:
		kind = unix.S_IFBLK
	}
	n, err := newNode(kind, e)
	if err != nil {
		return err
	}
	if kind != unix.S_IFIFO {
		if e.major < 0 || e.major >= 1<<12 || e.minor < 0 || e.minor >= 1<<20 {
			return errs.New(errs.Invalid, "device number %d:%d", e.major, e.minor)
		}
		n.Rdev = unix.Mkdev(uint32(e.major), uint32(e.minor))
	}
	if n.IsWhiteout() {
		b.hide(dir, base)
		return nil
	}
	b.set(dir, base, n)
	return nil
}

func newNode(kind uint32, e *entry) (*tree.Node, error) {
	n := &tree.Node{}
	return n, dress(n, kind, e)
}

func dressFolder(n *tree.Node, e *entry) error {
	n.Implied = false
	return dress(n, unix.S_IFDIR, e)
}

func dress(n *tree.Node, kind uint32, e *entry) error {
	n.Mode = kind | uint32(e.mode)&0o7777
	n.UID, n.GID = uint32(e.uid), uint32(e.gid)
	n.Sec, n.Nsec = e.sec, e.nsec
	n.Xattrs = nil
	if len(e.xattrs) > 0 {
		return dressXattrs(n, e.xattrs)
	}
	return nil
}

func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}
